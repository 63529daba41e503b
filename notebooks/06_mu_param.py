# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6 · µParam and other parameterizations
#
# **Question.** µParam keeps the best learning rate fixed while the width grows. Does it also make training more stable?
#
# **The paper** (section 3.2.4 and appendix E; Figures 8, E.4, E.5, E.6 and E.14) says: with µParam the best learning rate
# stops moving, but neither the loss nor LR sensitivity gets better; it does not replace qk-layernorm. Its full form with
# qk-layernorm survives a learning rate of 1. Scaling logits by 1/d_head instead of 1/√d_head is slightly better for the
# smallest model, worse for the largest, and does not replace qk-layernorm either. Scaling a tensor's learning rate by its
# RMS also fixes the best learning rate.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
import numpy as np
from IPython.display import Markdown

from proxies_lib.config import grid, replace
from proxies_lib.science import analysis, checks, plots, report
from proxies_lib.science.protocol import study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# *Simple* µParam divides the learning rate of linear layers by the width relative to the smallest model's;
# *intermediate* also shrinks the head's initialization, *full* also scales logits by 1/d_head and starts queries at
# zero. LR × RMS multiplies a tensor's learning rate by max(RMS, 1e-3), so its grid is ten times higher.

# %% tags=["grid"]
b, off, base_width = this.base, replace(this.base, qk_norm="none"), this.sizes[0][0]
rest = {"lr": this.window, "seed": this.seeds}
standard = {("d_model", "n_layers"): this.sizes} | rest
simple = {
    ("d_model", "n_layers", "linear_lr"): [(d, n, base_width / d) for d, n in this.sizes]
} | rest
runs = {"standard": grid(b, standard), "µParam (simple)": grid(b, simple)}
runs |= {
    "standard, no qk-layernorm": grid(off, standard),
    "µParam (simple), no qk-layernorm": grid(off, simple),
}
runs |= {
    "LR × RMS": grid(
        replace(b, lr_scaling="rms"), standard | {"lr": tuple(10 * lr for lr in this.window)}
    )
}

# %% tags=["grid"]
(d, n), ends = (
    this.sizes[-1],
    {
        ("d_model", "n_layers"): (this.sizes[0], this.sizes[-1]),
        "lr": this.upper,
        "seed": this.seeds,
    },
)
head = {
    "d_model": d,
    "n_layers": n,
    "linear_lr": base_width / d,
    "head_init": (base_width / d) ** 0.5,
}
full = head | {"attention_power": 1.0, "query_init": 0.0}
runs |= {
    "µParam (intermediate)": grid(replace(b, **head), rest),
    "µParam (full)": grid(replace(b, **full), rest),
}
runs |= {"µParam (full), no qk-layernorm": grid(replace(off, **full), rest)}
runs |= {"logits / d_head": grid(replace(b, attention_power=1.0), ends)}
runs |= {"logits / d_head, no qk-layernorm": grid(replace(off, attention_power=1.0), ends)}

# %%
table, curves = report.collect(runs, this)

# %% tags=["nbval-check-output"]
print(
    f"{len(table)} rows, {table['key'].nunique()} runs, {table['n_params'].nunique()} sizes, {table['seed'].nunique()} seeds"
)
print(
    f"data {this.base.data}, {this.base.hparams.steps} steps of {this.base.train.batch_size} × {this.base.model.seq_len} tokens"
)

# %% [markdown]
# ## Figure 8 · standard parameterization against simple µParam

# %%
by = ["method", "n_params"]
two = analysis.where(table, method=["standard", "µParam (simple)"])
loss, sensitivity = analysis.lr_curves(two, by), analysis.sensitivities(two, by, this)
figure = plots.figure_sweep(loss, sensitivity)
report.save(figure, "fig08_mu_param", {"loss": loss, **sensitivity}, two, this)

# %% [markdown]
# ## Figure E.4 · the same without qk-layernorm

# %%
without = analysis.where(
    table, method=["standard, no qk-layernorm", "µParam (simple), no qk-layernorm"]
)
loss, sensitivity = analysis.lr_curves(without, by), analysis.sensitivities(without, by, this)
figure = plots.figure_sweep(loss, sensitivity)
report.save(figure, "figE04_mu_param_no_qk", {"loss": loss, **sensitivity}, without, this)

# %% [markdown]
# ## Figure E.5 · simple, intermediate and full µParam at the largest size

# %%
variants = [
    "standard",
    *(f"µParam ({kind})" for kind in ("simple", "intermediate", "full")),
    "µParam (full), no qk-layernorm",
]
kinds = analysis.where(table, method=variants, n_params=table["n_params"].max())
loss = analysis.lr_curves(kinds, by)
report.save(plots.figure_by_size(loss), "figE05_mu_param_variants", {"loss": loss}, kinds, this)

# %% [markdown]
# ## Figure E.6 · logits scaled by 1/√d_head or 1/d_head

# %%
scalings = [
    "standard",
    "standard, no qk-layernorm",
    "logits / d_head",
    "logits / d_head, no qk-layernorm",
]
scaled = analysis.where(
    table,
    method=scalings,
    lr=this.upper,
    n_params=[table["n_params"].min(), table["n_params"].max()],
)
loss = analysis.lr_curves(scaled, by)
report.save(plots.figure_by_size(loss), "figE06_logit_scale", {"loss": loss}, scaled, this)

# %% [markdown]
# ## Figure E.14 · learning rates scaled by the RMS of each tensor
#
# The learning rate means something else here, so S is not reported, as the paper asks.

# %%
rms = analysis.where(table, method=["standard", "LR × RMS"])
loss = analysis.lr_curves(rms, by)
report.save(plots.figure_sweep(loss), "figE14_rms_scaled_lr", {"loss": loss}, rms, this)

# %% [markdown]
# The best learning rate per size (geometric mean over seeds):

# %%
best = analysis.optimum(table, by).assign(best_lr=lambda f: np.log10(f["best_lr"]))
best.pivot_table(index="method", columns="n_params", values="best_lr", sort=False).pipe(
    lambda f: (10**f).round(4)
)

# %% [markdown]
# ## What we see at laptop scale
#
# With µParam the best learning rate stays where it is while the standard one moves left as the width grows; LR × RMS
# does the same. The best loss and LR sensitivity change little, and neither µParam nor smaller logits replace
# qk-layernorm.

# %% [markdown]
# ## Verdicts
#
# Measures and thresholds were fixed in `proxies_lib/checks.py` before the runs. *Holds*: the whole interval over seeds
# lies on the claimed side.

# %%
verdicts = report.publish(checks.mu_param(table, curves, this), "06", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")
