"""The families of all packages by name.

The packages beside adpm/ add members by a dict MEMBERS of family -> members, and so does a user's config file: whatever
stands there is checked, keyed and documented like our own.
"""

from __future__ import annotations

import importlib

from adpm.families import Families, merged
from adpm.members import MEMBERS
from adpm.nn import NETWORKS
from adpm.nn.encoder import CLASSIFIERS
from adpm.run.data import DATA_SETS
from adpm.run.distances import MEASURES
from adpm.run.house import House
from adpm.run.layouts import LAYOUTS
from adpm.run.metrics import FEATURES
from adpm.run.models import DENOISERS
from adpm.run.modes.estimate import STATISTICS
from adpm.run.modes.likelihood import LIKELIHOODS
from adpm.run.of_file import NETWORKS as OF_FILE
from adpm.run.pictures import CROPS, RESAMPLES
from adpm.run.source_images import SOURCES
from adpm.run.times import TIMES
from adpm.run.trainees import TRAINEES
from adpm.run.training import SCHEDULES
from adpm.run.work import PRECISIONS

CORE: Families = {
    **MEMBERS,
    "data": DATA_SETS,
    "network": {**NETWORKS, **OF_FILE},
    "denoiser": DENOISERS,
    "times": TIMES,
    "schedule": SCHEDULES,
    "likelihood": LIKELIHOODS,
    "statistics": STATISTICS,
    "precision": PRECISIONS,
    "features": FEATURES,
    "measure": MEASURES,
    "crop": CROPS,
    "resample": RESAMPLES,
    "layout": LAYOUTS,
    "classifier": CLASSIFIERS,
    "trainee": TRAINEES,
    "source": SOURCES,
}

PACKAGES = ("sde.members", "covariance.members")
"""Modules with a dict MEMBERS; by name, because adpm/ imports neither package."""


def house(added: Families | None = None) -> House:
    """The families of this project, with those of a user's file.

    Raises:
        ValueError: for a family that there is not, or a name that is taken.
    """
    own = House(merged(CORE, *(importlib.import_module(name).MEMBERS for name in PACKAGES)))
    return own.with_members(added) if added else own
