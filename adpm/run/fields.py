"""The fields that the members of a section share; those of single members stand beside these (`Kind.fields`).

`of` says what a field is part of. Products are

    weights     the function that a network computes          training, head    how weights and a head came about
    model       what any figure of a model depends on         statistics, moments, costs, samples, bound, flow, cell

and two words for what changes no figure: amount (how many, in batches of how many) and machine (where it runs). A field
without it is part of whatever reads it. table.py makes everything else of this.
"""

from __future__ import annotations

from adpm.families import Field

_MODEL = ("weights", "training", "model")
_FIGURES = ("moments", "costs", "samples", "bound", "flow")

SECTIONS: dict[str, dict[str, Field]] = {
    "": {
        "seed": Field(
            0,
            "of everything random in a run",
            low=0,
            below=2**31,
            of=("training", "head", "cell", "statistics", *_FIGURES),
        ),
        "device": Field("auto", "auto | cpu | cuda | cuda:N", of=("machine",)),
        "precision": Field(
            "float32", "of network calls; tables stay float64", choices="precision", of=("model", "machine")
        ),
        "compile": Field(False, "torch.compile the network", of=("machine",)),
        "channels_last": Field(False, "keep images with their channels last in memory", of=("machine",)),
        "graphs": Field(False, "record the network's call once on a GPU and replay it (CUDA graphs)", of=("machine",)),
        "cache": Field("", "folder of moments and cost tables; empty: 'cache' beside the workdir", of=("machine",)),
    },
    "data": {"name": Field("digits", "the data set", choices="data", of=_MODEL)},
    "process": {"name": Field("linear", "the forward process", choices="process", of=_MODEL)},
    "network": {
        "name": Field("iddpm", "the network family", choices="network", of=(*_MODEL, "head")),
        "pretrained": Field("", "weights that are used until this workdir has trained its own", of=()),
        "save_as": Field("ours", "the layout that --mode=convert writes", choices="layout", of=()),
        "head_pretrained": Field("", "the same for the head; empty = the one in the weights' own file, if any", of=()),
    },
    "denoiser": {
        "name": Field("network", "how x0 is predicted", choices="denoiser", of=_MODEL),
        "predicts": Field("eps", "what the network's output is", choices="prediction"),
        "label": Field("index", "the number that the network receives as time", choices="label"),
        "clip": Field(True, "limit x0 to the data range", of=("model", "head"), reads=("denoiser.eps_after_clip",)),
        "eps_after_clip": Field("rederive", "the eps that goes with a clipped x0", choices="eps_after_clip"),
    },
    "classifier": {
        "name": Field("encoder", "the classifier of noisy images", choices="classifier", of=("classifier",)),
        "pretrained": Field("", "its weights, until this workdir has trained its own", of=()),
    },
    "train": {
        "trainee": Field("denoiser", "what is trained", choices="trainee", of=()),
        "objective": Field("eps", "what is minimised", choices="objective", of=("training", "head")),
        "times": Field("uniform", "how training times are drawn", choices="times", of=("training", "head")),
        "iterations": Field(10_000, "optimizer steps", low=1, of=()),
        "batch_size": Field(128, "images per step", low=1, of=()),
        "learning_rate": Field(1e-3, "of AdamW", above=0, of=()),
        "warmup": Field(200, "iterations of linear warm-up", low=0, of=()),
        "schedule": Field("cosine", "of the learning rate", choices="schedule", of=()),
        "weight_decay": Field(0.0, "of AdamW", low=0, of=()),
        "grad_clip": Field(1.0, "limit of the gradient norm; 0 = none", low=0, of=()),
        "class_dropout": Field(
            0.1, "share of training images that a network with a null class is told no class of", low=0, high=1
        ),
        "ema_decay": Field(
            0.999, "largest decay of the average, min(decay, (1 + k)/(10 + k)) at step k", low=0, below=1, of=()
        ),
        "log_every": Field(100, "iterations between scalars in TensorBoard", low=1, of=()),
        "test_every": Field(1000, "iterations between test losses", low=1, of=()),
        "sample_every": Field(2500, "iterations between sample grids; 0 = never", low=0, of=()),
        "save_every": Field(1000, "iterations between states that a killed run resumes from", low=1, of=()),
    },
    "moments": {
        "statistics": Field("moments", "what --mode=estimate measures", choices="statistics", of=()),
        "file": Field("", "a moments file to use; empty = measured when missing", of=()),
        "ms_eps": Field("", 'a published ms_eps file (estimator "gamma" only) instead', of=()),
        "times": Field(100, "reference times measured, even in log-SNR; 0 = all", low=0, of=("moments",)),
        "draws": Field(300, "(image, noise) pairs per time", low=6, of=("moments", "costs")),
        "target_error": Field(
            0.0,
            "relative standard error of Var[x0 | x_t] that draws and times grow to reach, from those above on; 0 = off",
            low=0,
            below=1,
            of=(),
        ),
        "batch_size": Field(256, "pairs per network call", low=1, of=("amount",)),
        "implausible": Field(
            False, "go on with a network that is worse than predicting no noise at all", of=("amount",)
        ),
        "write_ms_eps": Field(False, "also write gamma as a published ms_eps file", of=()),
    },
    "rule": {
        "name": Field("analytic", "the variance of a reverse step", choices="rule", reads=("rule.cap_levels",)),
        "cap_levels": Field(
            0.0,
            "cap the noise of the last steps at this many data levels (published: 1 or 2); 0 = off",
            low=0,
            high=1e6,
            reads=("rule.cap_steps",),
        ),
        "cap_steps": Field(1, "how many path elements the cap covers", low=1),
    },
    "trajectory": {
        "name": Field("least_cost", "which times are visited", choices="trajectory", of=("cell",)),
        "steps": Field(25, "K", low=1, of=("cell",)),
    },
    "sampling": {
        "solver": Field("reverse_gaussian", "how a step is taken", choices="solver", of=("samples",)),
        "corrector": Field(
            None, "steps around the solver's; unset = none", type=str, choices="corrector", of=("samples",)
        ),
        "start": Field("noise", "what sampling begins with", choices="start", of=("samples",)),
        "classes": Field("drawn", "of the samples, where a network is told them", choices="classes", of=("samples",)),
        "eta": Field(1.0, "1 = DDPM, 0 = DDIM", low=0, high=1),
        "samples": Field(64, "images drawn", low=1, of=("amount",)),
        "batch_size": Field(64, "images per network call", low=1, of=("amount",)),
        "grid": Field(64, "samples shown", low=1, of=()),
    },
    "translate": {
        "source": Field("split", "where the source images come from", choices="source", of=("translation",)),
        "images": Field(64, "how many of them; 0 = all", low=0, of=("amount",)),
        "share": Field(
            0.5, "of the reference times, at which a noised source begins: M/N", above=0, high=1, of=("translation",)
        ),
        "energies": Field(
            None,
            "that guide, joined by '+'; unset = none, SDEdit",
            type=str,
            choices="energy",
            many=True,
            of=("translation",),
        ),
        "repeats": Field(1, "walks, each from what came of the one before", low=1, of=("translation",)),
    },
    "likelihood": {
        "method": Field("bound", "ways to measure bits/dim, joined by '+'", choices="likelihood", many=True, of=()),
        "split": Field("test", "the images", of=("bound", "flow")),
        "images": Field(0, "how many of them; 0 = the whole split", low=0, of=("amount",)),
        "batch_size": Field(256, "images per network call", low=1, of=("amount", "flow")),
        "decoder": Field("optimal", "variance of the last step, the data term", choices="decoder"),
    },
    "evaluate": {
        "measures": Field("frechet+kernel+energy", "distances, joined by '+'", choices="measure", many=True, of=()),
        "features": Field("inception", "what they are measured in", choices="features", of=()),
        "folder": Field(
            "", "images to evaluate, all of one size; empty = the run's samples", of=(), reads=("evaluate.workers",)
        ),
        "reference": Field("", "npz with `mu` and `sigma`, as pytorch-fid writes it; empty = the data", of=()),
        "splits": Field(("train",), "of the data that are the reference", of=()),
        "images": Field(0, "how many of them, evenly spread; 0 = all", low=0, of=()),
        "floor": Field(True, "also tell what as many real images score, drawn with replacement", of=()),
        "batch_size": Field(64, "images per call of the features' network", low=1, of=()),
        "workers": Field(2, "processes that read the folder's images ahead", low=0),
    },
}
