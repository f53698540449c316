"""EGSDE's published translations (Zhao et al. 2022), 256x256: cat2dog, wild2dog, male2female.

    python main.py --config=configs/egsde.py:cat2dog --mode=translate

The two checkpoints lie where EGSDE's release puts them, `pretrained_model/`, and the sources in `data/`; all three are
fields: config.network.pretrained, config.classifier.pretrained, config.translate.source_folder. 500 of 1,000 steps of
the reverse SDE with the variance `small`, ls = 500, li = 2, a low pass of 32 pixels, one repetition.

The data set gives sizes, and moments where a rule asks for them; it is the sources, because nothing of the published
setting is measured. For measured rules name images of the target: --config.data.folder=FOLDER.
"""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base

_LEVELS = (1, 1, 2, 2, 4, 4)


def _dogs(source: str) -> Callable[[ConfigDict], None]:
    def change(config: ConfigDict) -> None:
        """ILVR's network of AFHQ dogs, of guided-diffusion's layout; its second output, a variance, is not used."""
        config.network.pretrained = "pretrained_model/afhq_dog_4m.pt"
        config.network.num_res_blocks = 1
        config.network.attention_downsample = (16,)
        config.network.head_channels = 64
        config.network.updown = True
        config.network.learned_variance = True
        _sources(config, f"data/afhq/val/{source}", f"{source}2dog")

    return change


def _female(config: ConfigDict) -> None:
    """A network of CelebA-HQ's women, of DDPM's layout."""
    config.network.name = "ddpm"
    config.network.pretrained = "pretrained_model/celebahq_female_ddpm.pth"
    config.network.num_res_blocks = 2
    config.network.attention_resolutions = (16,)
    _sources(config, "data/celeba_hq/val/male", "male2female")


def _sources(config: ConfigDict, folder: str, name: str) -> None:
    config.data.folder = folder
    config.translate.source_folder = folder
    config.classifier.pretrained = f"pretrained_model/{name}_dse.pt"


def get_config(variant: str = "cat2dog") -> ConfigDict:
    config = base.get_config()
    config.seed = 1234
    config.data.name = "folder"
    config.data.size = 256
    config.data.channels = 3
    config.denoiser.time_shift = 1
    config.denoiser.clip = False
    config.network.model_channels = 128
    config.network.channel_mult = _LEVELS
    config.network.dropout = 0.0
    config.classifier.width = 128
    config.classifier.channel_mult = _LEVELS
    config.classifier.num_res_blocks = 2
    config.classifier.attention_downsample = (8, 16, 32)
    config.classifier.head_channels = 64
    config.classifier.dropout = 0.0
    config.rule.name = "small"
    config.trajectory.name = "even"
    config.trajectory.steps = 500
    config.translate.source = "folder"
    config.translate.images = 0
    config.translate.energies = "low_pass+features"
    config.sampling.batch_size = 20
    variants = {"cat2dog": _dogs("cat"), "wild2dog": _dogs("wild"), "male2female": _female}
    return base.with_variant(config, variant, variants)
