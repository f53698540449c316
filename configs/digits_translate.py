"""Translation of digits: threes become eights, by EGSDE's energies and a classifier of noisy digits.

    python main.py --config=configs/digits_translate.py --mode=translate

The model is the one of all digits; the energy `target` leads it to eights, `features` away from threes, `low_pass`
keeps the source's layout. The classifier was made by --mode=train of the variant `classifier`. Variant sdedit: no
guidance.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, digits


def _classifier(config: ConfigDict) -> None:
    config.train.trainee = "classifier"
    config.classifier.pretrained = ""
    config.train.iterations = 2_000
    config.train.sample_every = 0
    config.train.weight_decay = 0.05
    config.train.ema_decay = 0.99


def _sdedit(config: ConfigDict) -> None:
    for name in ("low_pass_weight", "low_pass_factor", "features_weight", "target_weight", "target_class"):
        config.translate[name] = base.get_config().translate[name]
    config.translate.energies = None


def get_config(variant: str = "") -> ConfigDict:
    config = digits.get_config()
    config.classifier.width = 24
    config.classifier.pretrained = "pretrained/digits_noisy_classifier.safetensors"
    config.trajectory.name = "even"
    config.translate.source_class = 3
    config.translate.energies = "low_pass+features+target"
    config.translate.low_pass_weight = 0.5
    config.translate.low_pass_factor = 4
    config.translate.features_weight = 5.0
    config.translate.target_weight = 2.0
    config.translate.target_class = 8
    config.sampling.batch_size = 36
    return base.with_variant(config, variant, {"classifier": _classifier, "sdedit": _sdedit})
