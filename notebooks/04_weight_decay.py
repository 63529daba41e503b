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
# # 4 · Weight decay: independent of the learning rate or coupled to it
#
# **Question.** AdamW as its authors wrote it shrinks weights by λ a step; most libraries shrink them by λ times the
# learning rate. Does the choice matter for stability, and how does λ move the optimum?
#
# **The paper** (section 3.2.2 and appendix E; Figures 6 and E.10) says: independent decay (1e-4) has a lower LR
# sensitivity than coupled decay (0.1); more decay moves the best learning rate slightly to the right.

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
# Figure 6: the two kinds of decay at every size, over all learning rates, as the coupled arm is given the better of
# two windows. Figure E.10: no decay, the paper's λ, and, because decay acts through λ · steps, the λ that makes this
# product the paper's 10, and a tenth of it.

# %% tags=["grid"]
b = this.base
axes = {("d_model", "n_layers"): this.sizes, "lr": this.lrs, "seed": this.seeds}
kinds = {"independent decay 1e-4": {}, "coupled decay 0.1": {"weight_decay": 0.1, "decay": "coupled"}}
runs = {name: grid(replace(b, **change), axes) for name, change in kinds.items()}
decays = (0.0, b.hparams.weight_decay, this.matched_decay / 10, this.matched_decay)
axes = axes | {"lr": this.window}
runs |= {f"λ · steps = {x * b.hparams.steps:.2g}": grid(replace(b, weight_decay=x), axes) for x in sorted(set(decays))}

# %%
table, curves = sweep.collect(runs, this)
