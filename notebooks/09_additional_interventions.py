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
# # 9 · Steps, batch, and two more attentions
#
# **Question.** Does the shape of the loss against the learning rate depend on how long or with which batch we train? Does
# it matter where qk-layernorm acts, and is softmax to blame for the growth of attention logits?
#
# **The paper** (appendix E; Figures E.7, E.8, E.9 and E.11) says: half or twice the steps, and larger batches at constant
# tokens, leave the shape unchanged; qk-layernorm per head is slightly better than over the whole width; logits grow
# without softmax too.

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
# Over the upper five learning rates of the window; two sizes. Batches of 2 and 4 times the default take a half and a
# quarter of the steps. Pointwise attention weighs values by relu(logit)² / √length; it and its softmax twin have no
# qk-layernorm.

# %% tags=["grid"]
b, rest = this.base, {"lr": this.upper, "seed": this.seeds}
steps, warmup, batch = b.hparams.steps, b.hparams.warmup_steps, b.train.batch_size
small, wide = ({("d_model", "n_layers"): s} | rest for s in (this.sizes[:2], this.sizes[-2:]))
runs = {f"{x:g} × steps": grid(replace(b, steps=int(x * steps), warmup_steps=int(x * warmup)), small) for x in (0.5, 1, 2)}
runs |= {f"batch × {x}": grid(replace(b, batch_size=x * batch, steps=steps // x, warmup_steps=warmup // x), small) for x in (1, 2, 4)}
runs |= {f"qk-layernorm {kind}": grid(replace(b, qk_norm=value), wide) for kind, value in (("per head", "per_head"), ("whole", "whole"))}
runs |= {f"{kind} attention": grid(replace(b, qk_norm="none", attention=kind), small) for kind in ("softmax", "squared_relu")}

# %%
table, curves = sweep.collect(runs, this)
