"""Network families and their checkpoints. Builders take the shape of the data and their own options."""

from __future__ import annotations

from adpm.families import Field, Kind
from adpm.nn import ddpm, diffusers_unet, iddpm, mlp, score_sde
from adpm.nn.heads import UNET_FIELDS, NetworkFacts

_RESOLUTIONS = Field(None, "sides of the levels with attention; unset: none", type=tuple)

NETWORKS: dict[str, Kind] = {
    "iddpm": Kind(
        iddpm.build,
        "the U-Net of Improved DDPM (Nichol & Dhariwal 2021)",
        NetworkFacts(lambda num_classes=0, null_class=False, **options: (num_classes, null_class)),
        fields={
            **UNET_FIELDS,
            "attention_downsample": Field(None, "down-sampling factors with attention; unset: none", type=tuple),
            "num_heads": Field(4, "attention heads", low=1),
            "head_channels": Field(0, "channels of each head, in place of their number; 0 = num_heads heads", low=0),
            "updown": Field(False, "residual blocks change the sides (guided-diffusion's resblock_updown)"),
            "scale_shift": Field(True, "time scales and shifts features, instead of adding to them"),
            "learned_variance": Field(False, "twice the outputs, the second half a variance"),
            "num_classes": Field(0, "classes that the network is told (published: label_emb); 0 = none", low=0),
            "null_class": Field(
                False, "one class more, the last, for no class: what guidance needs", reads=("train.class_dropout",)
            ),
        },
    ),
    "ddpm": Kind(
        ddpm.build,
        "the U-Net of DDPM (Ho et al. 2020): CelebA and LSUN models of DDIM and Analytic-DPM",
        NetworkFacts(),
        fields={**UNET_FIELDS, "attention_resolutions": _RESOLUTIONS},
    ),
    "diffusers": Kind(
        diffusers_unet.build,
        "a UNet2DModel of the package diffusers, as its folder describes it",
        NetworkFacts(diffusers_unet.classes),
        fields={
            "pretrained": Field("", "folder with config.json and weights", of=()),
            **{name: UNET_FIELDS[name] for name in ("head", "head_block")},
        },
    ),
    "score_sde": Kind(
        score_sde.build,
        "DDPM++ and NCSN++ (Song et al. 2021)",
        NetworkFacts(),
        fields={
            **UNET_FIELDS,
            "variant": Field("vp", "vp (DDPM++) | ve (NCSN++)"),
            "attention_resolutions": _RESOLUTIONS,
        },
    ),
    "mlp": Kind(
        mlp.build,
        "a residual perceptron on vectors",
        NetworkFacts(),
        fields={
            "width": Field(512, "of the hidden layers, even", low=2),
            "depth": Field(4, "residual blocks", low=1),
            **{name: UNET_FIELDS[name] for name in ("dropout", "head")},
        },
    ),
}
