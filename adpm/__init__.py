"""Optimal reverse covariances and time steps for diffusion models: the discrete core.

    symbol          identifier             paper
    alpha_t         process.alpha(t)       sqrt(alpha-bar_t) of DDPM and Analytic-DPM; alpha_t of VDM
    sigma_t         process.sigma(t)       sqrt(1 - alpha-bar_t), sqrt(beta-bar_t)
    gamma_t         exp(process.log_snr)   SNR alpha_t^2/sigma_t^2 (VDM). Not Analytic-DPM's Gamma, which is
    E||eps||^2/d    the "gamma" estimator  Gamma_n of Analytic-DPM; `ms_eps` files hold it
    s < t           s, t                   a reverse step goes from t to s
    beta_{t|s}      forward_variance       Var[x_t | x_s]
    lambda^2        lambda2                Var[x_s | x_t, x_0]; beta-tilde at eta = 1
    eta             eta                    1 = DDPM, 0 = DDIM
    x_0, eps        x0, eps                with a hat in formulas, without one in code, for predictions
    Var_t           MomentTable.variance   E tr Cov[x_0 | x_t] / d
    kappa_t         excess precision       1/Var_t - gamma_t
    K, t_0..t_K     path                   trajectory: t_0 = 0 is the data, t_K = N

The pipeline in five lines (`process`, `denoise` and `source` describe the model and the data):

    table = MomentTable(times, draws of measure(denoise, process, source, times, ...), ...)
    path = process.times[a trajectory: even, quadratic, log_snr, least_cost]
    rule = Analytic(table.variance("residual", process))
    for step in sample(denoise, ReverseGaussian(process, rule), process, path, noise): x = step.x
    for term in path_terms(denoise, process, rule, decoder, levels, path, x0, noise): nats += term.nats

Imports run down this list: errors, pickles, process, kernel, noise, denoiser, ideal, moments, ms_eps, gaussian,
variance, shortest_path, planning, trajectory, solver, sampler, likelihood, cost_table, objective, nn, run. `sde` and
`covariance` import this package and not each other.
"""
