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
# # 11 · Your own intervention
#
# **Question.** Does a trick help stability? A class of a few lines puts it on the paper's axes,
# beside two anchors: nothing at all, and qk-layernorm.
#
# **Beyond the paper.** This notebook shows how, on soft-capping, and then tries what came after the
# paper: eight ideas of other groups. Nothing here is a claim of the two papers. Each arm is held
# against a prediction of ours that was written down before its runs. Every place where one can
# intervene is in [docs/interventions.md](../../docs/interventions.md).

# %% tags=["parameters"]
scale = "laptop"  # smoke | laptop | night | gpu | paper
train = False  # True trains the runs that the store lacks; False only reads
publish = False  # True writes figures and verdicts (training always does)
overrides = {}  # e.g. {"steps": 800, "seeds": [7, 8, 9]}: a protocol of your own

# %% tags=["setup"]
import jax
import jax.numpy as jnp
import optax
from IPython.display import Markdown

from proxies_lib import model
from proxies_lib.config import grid, replace
from proxies_lib.interventions import intervention
from proxies_lib.science import analysis, bisection, checks, plots, protocol, report, score
from proxies_lib.science.protocol import study
from proxies_lib.verify import verify

this = study(scale, overrides, train, publish)

# %% [markdown]
# ## Soft-capping, step by step
#
# Gemma 2 bounds the attention logits: cap · tanh(z / cap) before the softmax (arXiv 2408.00118).
# The function is named after the place where it acts. The number is a keyword of the decorator, and
# the function finds it in `h`.


# %% tags=["grid"]
@intervention(version=1, cap=50.0)
class softcap:
    def attention_logits(z, h):
        return h["cap"] * jnp.tanh(z / h["cap"])


# %% [markdown]
# Does it do what it should, and nothing else? `verify` asks a tiny model before any sweep. A cap of
# 50 does nothing there, since logits are small; one of 5 does.

# %%
verified = verify(softcap, cap=5.0)

# %% [markdown]
# ## What came after the paper
#
# **QK-Clip** (Kimi K2, arXiv 2507.20534) looks at a head after the step: where its largest logit
# passed τ, its queries and keys shrink by √(τ / largest).


# %% tags=["grid"]
@intervention(version=1, tau=30.0)
class qk_clip:
    def after(params, seen, h):
        def clipped(block, largest_H):
            attention = block["attention"]
            shrink_H = jnp.sqrt(jnp.minimum(1.0, h["tau"] / largest_H))
            width = attention["query"]["kernel"].shape[-1] // largest_H.size
            factor = jnp.repeat(shrink_H, width)
            names = ("query", "key")
            shrunk = {name: {"kernel": attention[name]["kernel"] * factor} for name in names}
            return block | {"attention": attention | shrunk}

        return model.over_blocks(clipped, params, seen["max_attention_logit_of_head"])


# %% [markdown]
# **µ-centering** (arXiv 2601.02031) takes the mean over the vocabulary from the rows of the head.
# It is against the drift of the output logits, of which so short a training has none. So it is the
# null here: it shows what an intervention looks like that does nothing.


# %% tags=["grid"]
@intervention(version=1)
class centering:
    def after(params, seen, h):
        head = params["head"]["kernel"]
        return params | {"head": {"kernel": head - head.mean(axis=1, keepdims=True)}}


# %% [markdown]
# **Peri-LN** (arXiv 2502.02732) normalizes what a branch adds, too: x + LN(f(LN(x))). It has
# parameters of its own, so it takes the place of the block.


# %% tags=["grid"]
@intervention(version=1)
class peri_ln:
    def block(config, linear, norm):
        class Peri(model.Block):
            def __init__(self):
                super().__init__(config, linear, norm)
                self.behind_attention = norm(config.d_model)
                self.behind_mlp = norm(config.d_model)

            def attend(self, x_ND, batch, probe, h):
                y_ND, taps = super().attend(x_ND, batch, probe, h)
                return self.behind_attention(y_ND), taps

            def feed_forward(self, x_ND):
                return self.behind_mlp(super().feed_forward(x_ND))

        return Peri()


# %% [markdown]
# **Muon** (arXiv 2502.16982) orthogonalizes the momentum of the matrices of the blocks, scaled to
# the RMS of Adam's update so that learning rates carry over. Embedding, head and norms stay with
# Adam.


# %% tags=["grid"]
@intervention(version=1)
class muon:
    def optimizer(h, step):
        def kind(path, p):
            return "muon" if path[0].key == "blocks" and path[-1].key == "kernel" else "adam"

        def axes(tree):
            number = optax.contrib.MuonDimensionNumbers
            return jax.tree.map(lambda x: number(x.ndim - 2, x.ndim - 1), tree)

        def to_rms_of_adam(update, params=None):
            return jax.tree.map(lambda x: 0.2 * max(x.shape[-2:]) ** 0.5 * x, update)

        orthogonal = optax.contrib.scale_by_muon(weight_dimension_numbers=axes)
        rules = {
            "muon": optax.chain(orthogonal, optax.stateless(to_rms_of_adam)),
            "adam": optax.scale_by_adam(h["b1"], h["b2"], h["eps"]),
        }
        return optax.partition(rules, lambda tree: jax.tree.map_with_path(kind, tree))


# %% [markdown]
# **StableAdamW** (arXiv 2304.13013) lowers the learning rate of a tensor whose gradient outruns its
# second moment, by √(mean of g² / v̂).


# %% tags=["grid"]
@intervention(version=1)
class stable_adamw:
    def optimizer(h, step):
        adam = optax.scale_by_adam(h["b1"], h["b2"], h["eps"])

        def update(gradients, state, params=None):
            delta, state = adam.update(gradients, state)
            trust = 1 - h["b2"] ** state.count

            def slowed(d, g, v):
                floor = jnp.maximum(v / trust, h["eps"] ** 2)
                return d / jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(g) / floor)))

            return jax.tree.map(slowed, delta, gradients, state.nu), state

        return optax.GradientTransformation(adam.init, update)


# %% [markdown]
# ## The runs
#
# One size, the learning rates of the window of S, and the seeds in pairs: a seed fixes the data of
# every arm, and the initialization as far as two arms have the same tensors. Peri-LN comes on top
# of qk-layernorm, and one arm joins qk-layernorm with the cap: Rybakov et al. (arXiv 2410.16682)
# report that the two together take 1.5 times the learning rate of qk-layernorm alone.

# %% tags=["grid"]
width, layers = this.ideas
normed = replace(this.base, d_model=width, n_layers=layers)
none = replace(normed, qk_norm="none")
arms = {
    "none": none,
    "qk-layernorm": normed,
    "soft-cap 50": softcap(none),
    "soft-cap 10": softcap(none, cap=10.0),
    "QK-Clip": qk_clip(none),
    "µ-centering": centering(none),
    "Muon": muon(none),
    "Muon, QK-Clip": qk_clip(muon(none)),
    "StableAdamW": stable_adamw(none),
    "qk-layernorm, peri-LN": peri_ln(normed),
    "qk-layernorm, soft-cap 50": softcap(normed),
}
axes = {"lr": this.window, "seed": this.ideas_seeds}
bisected = {name: grid(run, axes) for name, run in arms.items()}
runs = {name: bisected[name] for name in score.ANCHORS}
held_out = {name: arm for name, arm in bisected.items() if name not in score.ANCHORS}

# %% [markdown]
# StableAdamW was made against a second moment that is out of date. Section 10's burst of rare
# batches makes one, so it is tried there, too.

# %% tags=["grid"]
steps, every = this.base.hparams.steps, this.base.train.log_every // 2
rare, _ = protocol.burst(steps, every)
width, layers = this.adam
disturbed = replace(this.base, d_model=width, n_layers=layers, lr=0.1, log_every=every, **rare)
bursts = {"burst": disturbed, "burst, StableAdamW": stable_adamw(disturbed)}
with_bursts, with_remedy = (grid(run, {"seed": this.adam_seeds}) for run in bursts.values())
runs["burst"], held_out["burst, StableAdamW"] = with_bursts, with_remedy

# %% [markdown]
# ## Predictions, before the runs
#
# Of each arm one number is foretold, with a threshold: the prediction holds where the whole
# interval over seeds lies on its side, and is refuted where it lies on the other. They go to
# `predictions.csv` once, and only then this notebook trains the arms. The column `runs_stored`
# counts those of their runs that existed at that moment; 0 means that nobody could have known.

# %%
predictions = {
    "soft-cap 50": {
        "words": "The cap bounds what softmax sees, not the logits: before it they still pass 1e3.",
        "measure": "log10_logit_before",
        "above": 3.0,
    },
    "soft-cap 10": {
        "words": "A low cap helps stability: S is lower than without anything.",
        "measure": "S - none",
        "below": 0.0,
    },
    "QK-Clip": {
        "words": "QK-Clip acts after the fact: at the top LR one step takes logits past 100.",
        "measure": "log10_logit_before",
        "above": 2.0,
    },
    "µ-centering": {
        "words": "µ-centering does nothing for S in so short a training.",
        "measure": "|S - none|",
        "below": 0.05,
    },
    "Muon": {
        "words": "Muon learns more: its best loss is lower by 0.02 nats or more.",
        "measure": "best_loss - none",
        "below": -0.02,
    },
}

# %%
predictions |= {
    "Muon, QK-Clip": {
        "words": "QK-Clip lowers Muon's S below that of Adam without anything.",
        "measure": "S - none",
        "below": 0.0,
    },
    "StableAdamW": {
        "words": "StableAdamW leaves S alone: growing logits are no stale second moment.",
        "measure": "|S - none|",
        "below": 0.05,
    },
    "qk-layernorm, peri-LN": {
        "words": "On top of qk-layernorm, peri-LN lowers S.",
        "measure": "S - qk-layernorm",
        "below": 0.0,
    },
    "qk-layernorm, soft-cap 50": {
        "words": "On top of qk-layernorm a cap of 50 is hardly reached: it moves the diverging LR "
        "by less than 1.25 times (1.5 is reported).",
        "measure": "diverging_lr / qk-layernorm",
        "below": 1.25,
    },
    "burst, StableAdamW": {
        "words": "StableAdamW at least halves the spike after the burst.",
        "measure": "height / burst",
        "below": 0.5,
    },
}

# %%
written = score.write_down(predictions, held_out, this)
written[["method", "measure", "above", "below", "runs_stored"]]

# %% [markdown]
# ## Train, then bisect
#
# Only now are the arms trained; the anchors were before.
# A grid of two learning rates a decade cannot see a factor of 1.5. So the interval between the last
# learning rate that trains and the first that fails is halved, for each arm and seed, until the
# [diverging LR](../../docs/glossary.md#diverging-lr) is known to a factor of 1.33.

# %%
table, curves = report.collect(runs | held_out, this)

# %%
found = bisection.rounds(bisected, this)

# %% tags=["nbval-check-output"]
report.summary(table, this)

# %% [markdown]
# ## Loss against learning rate
#
# **Drawn.** Final loss for each peak learning rate at one size, a panel per intervention: green
# with it, red without anything, blue with qk-layernorm. Dotted upright lines in the same colors are
# the diverging learning rates, means over seeds; a curve of which no learning rate fails has none.
#
# **If an intervention helps,** its curve stays flat where the red one turns up, and its dotted line
# lies to the right of the red one, or is not there.
#
# **On the laptop** either cap moves the cliff to one and a half times the learning rate, QK-Clip to
# twice, and with Muon to more than ten times. µ-centering and StableAdamW lie on the red curve.
# Peri-LN on top of qk-layernorm has no cliff at all; the cap on top of it changes nothing.
#
# **At night** a cap of 10 moves the cliff to twice the learning rate, one of 50 to three and a half
# times, Muon to one and a half. QK-Clip, with or without Muon, and whatever has qk-layernorm trains
# at the top learning rate, 0.3. µ-centering and StableAdamW lie on the red curve again.

# %%
compared = analysis.where(table, method=list(arms))
foretold = score.predictions_of(written)
in_bursts = {name: foretold.pop(name) for name in bursts if name in foretold}
measured = score.measured(compared, curves, this, brackets=found.brackets)
scores = score.score(compared, curves, this, predictions=foretold, brackets=found.brackets)
loss = analysis.lr_curves(compared, report.CURVE)
figure = plots.figure_ideas(loss, scores, score.ANCHORS)
report.save(figure, "fig_ideas", {"loss": loss}, compared, this)

# %% [markdown]
# ## What each intervention does
#
# **Drawn.** A row per arm, the first one without anything: LR sensitivity S, the diverging learning
# rate, the best loss, and the largest attention logit of the training at the top learning rate, as
# log₁₀ of q·k, before any cap. Points are seeds, with their mean and its 95 % interval; the dotted
# line is the mean without anything. An open arrow at the top learning rate is a seed that trains
# there, so that it diverges further right, if at all.
#
# **If an intervention helps,** its points of S lie left of the dotted line, those of the diverging
# learning rate right of it.
#
# **On the laptop** the arms that tame the logits themselves, by normalizing or clipping, have the
# lowest S. Under a cap logits grow as without one. Muon learns much more than Adam, with logits as
# large, and needs the clip; peri-LN helps as much with Adam.
#
# **At night** S with QK-Clip is a fifth of that without anything. With Muon and the clip it is that
# of qk-layernorm, and the best loss 0.06 nats lower. Peri-LN lowers S on top of qk-layernorm by
# 0.02, and no longer the best loss. QK-Clip holds the logits below 100 at the top learning rate,
# against our prediction: that rate is 0.3 here, and 1 on the laptop.

# %%
quantities = {
    "S": ("LR sensitivity S (nats)", "linear"),
    "diverging_lr": ("diverging learning rate", "log"),
    "best_loss": ("best validation loss (nats/token)", "linear"),
    "log10_logit_before": ("log₁₀ largest attention logit, top LR", "linear"),
}
figure = plots.figure_dots(measured, quantities, list(arms))
drawn = {"seeds": measured, "scores": scores}
report.save(figure, "fig_ideas_score", drawn, found.table, this)

# %% [markdown]
# The same numbers, as one shares them. ≥: the diverging learning rate lies above the top one. The
# cost of a step is wall time against runs without anything of the same commit, and noisy.

# %%
Markdown(score.score_table(scores))

# %% [markdown]
# ## A burst of rare batches
#
# **Drawn.** Section 10's burst, with AdamW and with StableAdamW: the height of the spike of the
# training loss, and the final loss. Points are seeds, with mean and 95 % interval; dotted, the mean
# of AdamW.
#
# **If StableAdamW does what it was made for,** its spikes are at most half as high.
#
# **On the laptop** they are half as high on average, so that “at most half” stays undecided. The
# final loss is the same.
#
# **At night** they are not lower but higher, in seven seeds of eight and 1.4 times on average, and
# the final loss is the same. The burst has 41 steps here, and 9 on the laptop. At its end the
# training loss is 0.002 with either optimizer; on the laptop it is 0.9 with AdamW and 1.6 with
# StableAdamW, which so has less to learn again.

# %%
disturbed_runs = analysis.where(table, method=list(bursts))
observed = analysis.curves_of(disturbed_runs, curves)
begin, length = rare["rare_batch"], rare["rare_batches"]
spikes = analysis.spikes(observed, begin, length, steps // 8, checks.SMALL)
heights = spikes.merge(disturbed_runs[["key", "loss"]], on="key")
quantities = {
    "height": ("height of the spike (nats)", "linear"),
    "loss": (plots.LOSS_AXIS, "linear"),
}
figure = plots.figure_dots(heights, quantities, list(bursts))
drawn = {"spikes": heights[["key", "seed", "method", *quantities]]}
report.save(figure, "fig_ideas_burst", drawn, disturbed_runs, this)

# %% [markdown]
# ## What we see
#
# **On the laptop** what keeps logits small helps, and more the earlier it acts: a cap in front of
# the softmax a little, a clip after the step more, a norm on queries and keys still more.
# StableAdamW, which changes the optimizer's step, does not raise the cliff by a quarter, but halves
# a spike that stale moments make; Muon by itself moves the cliff to learning rates 2.8 times as
# high. A norm behind each branch, on top of qk-layernorm, helps most. Rybakov et al. see a cap on
# top of qk-layernorm take 1.5 times the learning rate; here, where normed logits hardly reach the
# cap, it does not.
#
# **At night** the same kind of help helps, and a clip after the step is nearly as good as a norm;
# with Muon it is as good, at a lower loss. StableAdamW does not halve the spike of a longer burst.
# On the cap on top of qk-layernorm nothing can be said: no learning rate of this scale fails there.

# %% [markdown]
# ## Verdicts
#
# Each prediction as `predictions.csv` has it. A prediction
# [holds](../../docs/glossary.md#verdict) only if the whole interval over seeds lies on its side.

# %%
ratios = score.paired_ratio(heights, "height", "burst")
claims = score.verdicts(measured, foretold, this, "ideas.score", "ideas-")
claims += score.verdicts(ratios, in_bursts, this, "ideas.burst", "ideas-")
verdicts = report.publish(claims, "11", this)
Markdown(report.verdict_table(verdicts))

# %% tags=["nbval-check-output"]
print(f"{len(verdicts)} claims checked")

# %% [markdown]
# ## Your turn
#
# Copy this into a notebook of yours, anywhere, and change the class. No file of the project
# changes. `verify` takes half a minute, the sweep some minutes on a few cores.
#
# ```python
# import jax.numpy as jnp
#
# from proxies_lib.config import grid, replace
# from proxies_lib.interventions import intervention
# from proxies_lib.science import bisection, report, score
# from proxies_lib.science.protocol import study
# from proxies_lib.verify import verify
#
# this = study("laptop", {"label": "mine"}, train=True)
#
#
# @intervention(version=1, strength=1.0)
# class mine:
#     def attention_logits(z, h):
#         return z / (1.0 + h["strength"] * jnp.abs(z) / 50.0)
#
#
# verify(mine)
# normed = replace(this.base, d_model=64, n_layers=2)
# none = replace(normed, qk_norm="none")
# arms = {"none": none, "qk-layernorm": normed, "mine": mine(none)}
# axes = {"lr": this.window, "seed": this.seeds}
# runs = {name: grid(run, axes) for name, run in arms.items()}
# table, curves = report.collect(runs, this)
# brackets = bisection.rounds(runs, this).brackets
# print(score.score_table(score.score(table, curves, this, brackets=brackets)))
# ```
