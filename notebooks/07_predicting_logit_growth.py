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
# # 7 · Predicting an instability before it happens
#
# **Question.** Can small models tell at which learning rate a larger one will fail, before it is trained?
#
# **The paper** (section 3.3; Figures 9 and 10) fits, for each learning rate, the largest attention logit of the first
# block early in training as a quadratic in N, and says: every run whose logit passed 10⁴ failed; the fit foretold that the
# largest model would pass it at LR 1e-2, and its logit; it did fail. Why 10⁴: a model whose logits are forced to be large
# (κ) gets worse from κ ≈ 10³, and worse than a bigram model at 10⁴.

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
from IPython.display import Markdown

from proxies_lib import analysis, claims, plots, sweep
from proxies_lib.config import grid, replace, study

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## The runs
#
# Without qk-layernorm, several sizes at six learning rates. The held-out size is not among them: it is trained further
# down, by this notebook, once the prediction stands in a file. For Figure 10, one middle size with q and k forced to the
# length √κ, and the same network without blocks (a bigram model), at the middle learning rate.

# %% tags=["grid"]
off, lrs = replace(this.base, qk_norm="none"), this.window[-6:]
fitted = {("d_model", "n_layers"): this.fitted, "lr": lrs, "seed": this.seeds}
d, n = this.sizes[len(this.sizes) // 2]
middle = replace(this.base, d_model=d, n_layers=n, lr=this.window[len(this.window) // 2])
kappas = {"qk_norm": ("kappa",), "kappa": (1.0, 1e1, 1e2, 1e3, 1e4, 1e5), "seed": this.seeds}
runs = {"without qk-layernorm": grid(off, fitted), "κ": grid(middle, kappas)}
runs |= {"bigram": grid(replace(middle, n_layers=0), {"seed": this.seeds})}
held_out = {"without qk-layernorm": grid(off, fitted | {("d_model", "n_layers"): this.held_out})}

# %%
table, curves = sweep.collect(runs, this)
