"""Network families and their checkpoints. Builders take the shape of the data and their own options."""

from __future__ import annotations

from adpm.families import Field, Kind
from adpm.nn import ddpm, iddpm, score_sde
from adpm.nn.heads import UNET_FIELDS

_RESOLUTIONS = Field(None, "sides of the levels with attention; unset: none", type=tuple)

NETWORKS: dict[str, Kind] = {
    "iddpm": Kind(
        iddpm.build,
        "the U-Net of Improved DDPM (Nichol & Dhariwal 2021)",
        fields={
            **UNET_FIELDS,
            "attention_downsample": Field(None, "down-sampling factors with attention; unset: none", type=tuple),
            "num_heads": Field(4, "attention heads", low=1),
            "scale_shift": Field(True, "time scales and shifts features, instead of adding to them"),
            "learned_variance": Field(False, "twice the outputs, the second half a variance"),
        },
    ),
    "ddpm": Kind(
        ddpm.build,
        "the U-Net of DDPM (Ho et al. 2020): CelebA and LSUN models of DDIM and Analytic-DPM",
        fields={**UNET_FIELDS, "attention_resolutions": _RESOLUTIONS},
    ),
    "score_sde": Kind(
        score_sde.build,
        "DDPM++ and NCSN++ (Song et al. 2021)",
        fields={
            **UNET_FIELDS,
            "variant": Field("vp", "vp (DDPM++) | ve (NCSN++)"),
            "attention_resolutions": _RESOLUTIONS,
        },
    ),
}
