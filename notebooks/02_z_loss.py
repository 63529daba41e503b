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
# # 2 · Output logit divergence and z-loss
#
# **Question.** The logits of the output layer can drift far away from zero. Softmax does not care about a common shift,
# so does the drift harm, and do its two remedies, z-loss and weight decay, help?
#
# **The paper** (section 3.1.2; Figures 3 and 4) says: without weight decay and without z-loss, training fails at high
# learning rates at every size, while the mean output logit drifts to large negative values late in training. z-loss
# (1e-4 · log² Z) repairs it at every size; weight decay alone repairs it for the larger models.

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
# Every size over the window of learning rates, with qk-layernorm, for weight decay and z-loss on and off. Decay acts
# through λ · steps, which is 10 in the paper and far less in a short training, so one arm has the decay that brings
# the product back to 10. Figure 4's runs are at the smallest size and LR 0.1, at this length and longer, with a larger
# vocabulary where the data allows it, and in the other precision: one change at a time.

# %% tags=["grid"]
b = this.base
axes = {("d_model", "n_layers"): this.sizes, "lr": this.window, "seed": this.seeds}
neither, z_loss = "no decay, no z-loss", "no decay, z-loss"
arms = {neither: {"weight_decay": 0.0, "z_loss": 0.0}, z_loss: {"weight_decay": 0.0}, "decay, no z-loss": {"z_loss": 0.0},
        "matched decay, no z-loss": {"weight_decay": this.matched_decay, "z_loss": 0.0}, "decay, z-loss": {}}  # fmt: skip
runs = {name: grid(replace(b, **change), axes) for name, change in arms.items()}
longer = replace(b, steps=this.horizon * b.hparams.steps, warmup_steps=this.horizon * b.hparams.warmup_steps)
other = replace(b, compute_dtype="bfloat16" if b.model.compute_dtype == "float32" else "float32")
point = {("d_model", "n_layers"): this.sizes[:1], "lr": (0.1,), "seed": this.seeds}
for base in (longer, other, *(replace(b, vocab_size=v) for v in this.vocabularies)):
    runs |= {name: runs[name] + grid(replace(base, **arms[name]), point) for name in (neither, z_loss)}

# %%
table, curves = sweep.collect(runs, this)
