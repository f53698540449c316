"""--mode=translate: source images noised and walked back under guidance; images, a grid and the figures of the run."""

from __future__ import annotations

import json

import numpy as np
import torch

from adpm.progress import say
from adpm.run.assembly import Session
from adpm.run.figures import save_figure, strip_figure
from adpm.run.report import Report, image_grid, markdown, save_png
from adpm.run.translations import Translations, translations_for


def translate(session: Session) -> None:
    """Translate config.translate.images source images and report how."""
    made = translations_for(session)
    data, process = session.data, session.process
    images = data.decode(made.kept)
    pairs = torch.stack([made.sources, images], 1)[: max(1, session.config.sampling.grid // 2)]
    columns = 2 * max(1, round((len(pairs) / 2) ** 0.5))
    grid = image_grid(data.to_unit(pairs.flatten(0, 1)), columns)
    save_png(made.folder / "grid.png", grid)
    for number, image in enumerate(data.to_unit(images)):
        save_png(made.folder / "images" / f"{number:05d}.png", image, min_side=1)
    shown = made.first["shown"].astype(np.float64)
    strip = strip_figure(data.to_unit(torch.as_tensor(made.first["strip"])), shown, process.log_snr(shown))
    save_figure(made.folder / "strip.png", strip)
    off = float((images - made.sources).flatten(1).norm(dim=1).mean())
    with Report(session.workdir / "tensorboard" / "translate" / made.folder.name) as report:
        report.picture("translate/grid", grid, 0)
        report.figure("translate/strip", strip)
        report.text("translate/protocol", markdown(json.loads((made.folder / "protocol.json").read_text())))
        choices = {"energies": session.config.translate.energies, "rule": session.config.rule.name}
        figures = {"translate/l2_to_source": off, "translate/network_calls": float(made.first["nfe"])}
        report.trial(made.folder.name, choices, figures)
    _told(session, made, off)


def _told(session: Session, made: Translations, off: float) -> None:
    """What the user reads."""
    section, process = session.config.translate, session.process
    begin = f"t = {made.path.times[-1]:g} (log-SNR {float(process.log_snr(made.path.times[-1:])[0]):.2f})"
    guided = f"guided by {section.energies}" if section.energies else "not guided (SDEdit)"
    calls = int(made.first["nfe"])
    say(f"{len(made.kept)} images noised to {begin}, {guided}, {calls} network calls each, energies' among them.")
    say(f"mean distance to the source: {off:.4g} (L2, in the network's range).")
    say(f"images:      {made.folder / 'images'}, {made.file}")
    say(f"grid:        {made.folder / 'grid.png'} (each source beside what it became)")
    say(f"TensorBoard: tensorboard --logdir {session.workdir / 'tensorboard'}")
