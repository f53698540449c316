"""Every config field with its default and unit; the other files state differences.

Sections mirror the constructors they feed. A field that only some members of a family take is unset here
(`placeholder`): the member's own default holds, and setting it for another member is refused. Override any field on the
command line:
    python main.py --config=configs/digits.py:cosine --mode=sample --config.trajectory.steps=25
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from adpm.errors import lookup


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of everything random in a run
    config.device = "auto"  # auto | cpu | cuda
    config.precision = "float32"  # float32 | bfloat16 (autocast around the network; tables stay float64)
    config.compile = False  # torch.compile the network

    config.data = ConfigDict()
    config.data.name = "digits"  # digits | patches | toy | cifar10
    config.data.size = placeholder(int)  # patches (32), toy (4): image side in pixels
    config.data.stride = placeholder(int)  # patches (4): pixels between crops
    config.data.seed = placeholder(int)  # toy (0): which mixture
    config.data.low = placeholder(float)  # digits, patches, cifar10 (-1): the range that the network sees
    config.data.high = placeholder(float)  # digits, patches, cifar10 (1)
    config.data.folder = placeholder(str)  # cifar10 ("data"): where the archive lies
    config.data.download = placeholder(bool)  # cifar10 (False): fetch the archive when it is not there

    config.process = ConfigDict()
    config.process.name = "linear"  # linear | cosine | vp_integral | custom | vp | subvp | ve
    config.process.steps = 1000  # N, reference steps
    config.process.betas_file = placeholder(str)  # custom: a .npy or text file with the N betas
    config.process.t_min = placeholder(float)  # SDEs (1e-3; ve 1e-5): the first reference time
    config.process.grid = placeholder(str)  # SDEs (uniform): uniform | log_snr | quadratic | edm
    config.process.beta_min = placeholder(float)  # vp, subvp (0.1)
    config.process.beta_max = placeholder(float)  # vp, subvp (20)
    config.process.sigma_min = placeholder(float)  # ve (0.01)
    config.process.sigma_max = placeholder(float)  # ve (50)

    config.network = ConfigDict()
    config.network.name = "iddpm"  # iddpm | score_sde
    config.network.model_channels = 32  # width M of the finest level
    config.network.channel_mult = (1, 2)  # width of each level in units of M
    config.network.num_res_blocks = 1  # residual blocks per level
    config.network.dropout = 0.1
    config.network.head = "none"  # none | simple | complex: second output on the last hidden layer, trained by itself
    config.network.attention_downsample = placeholder(tuple)  # iddpm (none): down-sampling factors with attention
    config.network.num_heads = placeholder(int)  # iddpm (4): attention heads
    config.network.scale_shift = placeholder(bool)  # iddpm (True): time scales and shifts features, instead of adding
    config.network.learned_variance = placeholder(bool)  # iddpm (False): twice the outputs; sampling uses half
    config.network.variant = placeholder(str)  # score_sde (vp): vp | ve
    config.network.attention_resolutions = placeholder(tuple)  # score_sde (none): feature widths with attention
    config.network.pretrained = ""  # weights that are used until this workdir has trained its own
    config.network.head_pretrained = ""  # the same for the head; empty = the one in the weights' own file, if any

    config.denoiser = ConfigDict()
    config.denoiser.name = "network"  # network | ideal (exact, for data with known truth: no network at all)
    config.denoiser.predicts = "eps"  # eps | x0 | score
    # index ((n - time_shift) * time_scale) | time_999 (999 t, score_sde's VP) | sigma (score_sde's VE)
    config.denoiser.label = "index"
    config.denoiser.time_shift = 0  # 1: the network counts steps from 0
    config.denoiser.time_scale = 0.0  # label = (n - time_shift) * time_scale; 0 = 1000/N
    config.denoiser.clip = True  # limit x0 to the data range
    config.denoiser.eps_after_clip = "rederive"  # rederive (published DDPM) | keep (published DDIM)

    config.train = ConfigDict()
    # eps | heads on trained weights: sn, npr, relative | with learned_variance: hybrid, vlb
    config.train.objective = "eps"
    # uniform | log_snr | loss_aware (vlb: by the size of the loss): how training times are drawn
    config.train.times = "uniform"
    config.train.iterations = 10_000
    config.train.batch_size = 128
    config.train.learning_rate = 1e-3
    config.train.warmup = 200  # iterations of linear warm-up
    config.train.schedule = "cosine"  # constant | cosine (to zero at the last iteration)
    config.train.weight_decay = 0.0
    config.train.grad_clip = 1.0  # limit of the gradient norm; 0 = none
    config.train.ema_decay = 0.999
    config.train.log_every = 100  # iterations between scalars in TensorBoard
    config.train.test_every = 1000  # iterations between test losses
    config.train.sample_every = 2500  # iterations between sample grids; 0 = never
    config.train.save_every = 1000  # iterations between states that a killed run resumes from
    config.train.trunk_dropout = False  # heads: leave the trunk's dropout on in training, as published

    config.moments = ConfigDict()
    config.moments.file = ""  # a moments file to use; empty = the workdir's own, estimated when missing
    config.moments.ms_eps = ""  # a published ms_eps file (estimator "gamma" only) instead
    config.moments.times = 100  # reference times measured, even in log-SNR; 0 = all
    config.moments.draws = 300  # (image, noise) pairs per time
    config.moments.batch_size = 256
    config.moments.write_ms_eps = False  # also write gamma as a published ms_eps file

    config.rule = ConfigDict()
    # small | unit | large | analytic; with a network's second output: sn | npr | relative | learned
    config.rule.name = "analytic"
    # of Var_t, for the rule and objective relative and the decoder optimal, too: residual | gamma | data
    config.rule.estimator = "residual"
    # 0 <= Var[x0|x_t] <= Var[x0] (sn, npr, relative: half the data range squared), share that acts is reported
    config.rule.bounds = True
    config.rule.average = False  # sn, npr, relative: one variance per state, the mean over its pixels
    # cap the noise of the last steps at this many data levels (published: 1 or 2); 0 = off
    config.rule.cap_levels = 0.0
    config.rule.cap_steps = 1  # how many path elements the cap covers

    config.trajectory = ConfigDict()
    # least_cost | log_snr | even | quadratic | stride | power2 | power3 | power4 | published_split
    # (the published code's names: "linear", "quad_ddim", "linear_ddim", "power<k>", "dp_seg")
    config.trajectory.name = "least_cost"
    config.trajectory.steps = 25  # K
    config.trajectory.budget = "exactly"  # exactly | at_most K steps
    # least_cost: kl (the optimal scalar's cost) | bound (this rule's, from Var_t; for rules without a state) | measured
    # (this rule's, from the states at every time)
    config.trajectory.cost = "kl"
    # least_cost: price the last step to the data (else the path goes through t = 1)
    config.trajectory.data_term = False
    config.trajectory.projection = True  # plan on the monotone projection of the excess precision
    config.trajectory.method = "auto"  # auto | dense | divide
    config.trajectory.log_snr_max = 0.0  # log_snr: the ends of the path; both 0 = whole range
    config.trajectory.log_snr_min = 0.0

    config.sampling = ConfigDict()
    # reverse_gaussian | SDEs: euler_maruyama, probability_flow_euler, probability_flow_heun, probability_flow_adaptive
    config.sampling.solver = "reverse_gaussian"
    config.sampling.corrector = placeholder(str)  # langevin | langevin_batch | ald; unset = none
    config.sampling.corrector_snr = 0.16
    config.sampling.corrector_steps = 1
    config.sampling.corrector_first = True  # before each step, as published; else after it
    config.sampling.eta = 1.0  # 1 = DDPM, 0 = DDIM
    config.sampling.samples = 64
    config.sampling.batch_size = 64
    config.sampling.grid = 64  # samples shown

    config.likelihood = ConfigDict()
    config.likelihood.method = "bound"  # bound (variational) | flow (SDEs: the probability-flow ODE) | bound+flow
    config.likelihood.split = "test"
    config.likelihood.images = 0  # 0 = the whole split
    config.likelihood.batch_size = 256
    config.likelihood.decoder = "published"  # published | published_elbo | optimal: variance of the data term
    config.likelihood.dequantisation = "uniform"  # flow: uniform | diffusion (ends in the bound's decoder)
    config.likelihood.probe = "rademacher"  # flow: rademacher | gaussian, probes of the divergence
    config.likelihood.probes = 1  # flow: probes per image
    config.likelihood.t_min = 1e-5  # flow: where the data are put
    config.likelihood.rtol = 1e-5  # flow: tolerances of the adaptive solver
    config.likelihood.atol = 1e-5
    config.likelihood.max_nfe = 1000  # flow: evaluations allowed per batch
    return config


def with_variant(config: ConfigDict, variant: str, variants: Mapping[str, Callable[[ConfigDict], None]]) -> ConfigDict:
    """`config` changed by the named variants, several joined by '+'."""
    for name in filter(None, variant.split("+")):
        lookup(variants, name, "config variant")(config)
    return config
