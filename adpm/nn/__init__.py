"""Network families and their checkpoints. Builders take the shape of the data and their own options."""

from __future__ import annotations

from adpm.families import Field, Kind
from adpm.nn import iddpm, mlp, score_sde
from adpm.nn.heads import UNET_FIELDS

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
    "score_sde": Kind(
        score_sde.build,
        "DDPM++ and NCSN++ (Song et al. 2021)",
        fields={
            **UNET_FIELDS,
            "variant": Field("vp", "vp (DDPM++) | ve (NCSN++)"),
            "attention_resolutions": Field(None, "sides of the levels with attention; unset: none", type=tuple),
        },
    ),
    "mlp": Kind(
        mlp.build,
        "a residual perceptron on vectors",
        fields={
            "width": Field(512, "of the hidden layers, even", low=2),
            "depth": Field(4, "residual blocks", low=1),
            **{name: UNET_FIELDS[name] for name in ("dropout", "head")},
        },
    ),
}
