"""Section 10: P2's theory of Adam's instability, in a simulation and in six stages of a spike.

The small models of this project have no spikes of their own. ε is raised until early layers are
below it, and a burst of rare batches plays the part of the rare batch: checks of that are noted
as *forced*. A *spike* is the loss after the burst above the loss before it.
"""

import pandas as pd

from proxies_lib.science import analysis
from proxies_lib.science.analysis import where
from proxies_lib.science.checks.measures import FORCED, GRADIENT, QUESTION, UPDATE, notes
from proxies_lib.science.checks.thresholds import EXPLODES, SMALL
from proxies_lib.science.claims import check

TENSOR = "blocks/0/mlp_in"  # of the histograms: the early layer that P2 is about
COSINE = f"gradient_cosine/{TENSOR}"  # of successive gradients

DEFAULT, RAISED, LARGE_BATCH = "ε = 1e-8", "ε = 1e-3", "ε = 1e-3, batch × 8"
QUIET, RAISED_QUIET = f"{DEFAULT}, no burst", f"{RAISED}, no burst"
DECAYED = "ε from 1e-3 to 1e-8"
NOISE, RAISED_NOISE = f"{DEFAULT}, noise", f"{RAISED}, noise"

REMEDIES = {  # the end of the claim's name: the arm, the words of the statement
    "lr": ("LR / 3", "A lower LR"),
    "epsilon": (DEFAULT, "A lower ε"),
    "zero": ("ε = 0", "ε = 0, with u := 0 where v = 0,"),
    "decayed": (DECAYED, "ε decayed during training"),
    "batch": ("batch / 2", "A smaller batch"),
    "beta": ("β = 0.8, 0.9", "A lower β1 and β2"),
    "embedding": ("embedding gradient / 10", "A tenth of the embedding's gradient"),
    "skip": ("rewind and skip", "Going back and skipping the batches"),
}


def adam_instability(
    simulated: pd.DataFrame,
    table: pd.DataFrame,
    observed: pd.DataFrame,
    spikes: pd.DataFrame,
    begin: int,
    nearby: int,
) -> list[dict]:
    """P2, and questions of this project.

    `simulated` is `adam.by_seed`. `observed` are the curves of the runs of `table`, with `dip`, the
    dip statistic of the histogram of r of TENSOR. `spikes` are `analysis.spikes` of a burst that
    begins at step `begin`, looked at for `nearby` steps before and after.
    """
    # r has two modes where its dip is above that of the simulation at ρ = adam.CORRELATED.
    two_modes = observed.assign(two_modes=observed["dip"] > simulated["dip"].mean())
    modes = two_modes.groupby(["method", "seed"])["two_modes"].mean()
    height = spikes.set_index(["method", "seed"])["height"]
    final = analysis.with_loss(table).set_index(["method", "seed"])["loss"]
    return [
        *_ratio(simulated),
        *_stages_before_the_burst(observed, modes, begin, nearby),
        *_stages_of_the_spike(observed, height, final, begin, nearby),
        *_another_burst(height),
        *_remedies(height),
        *_repeated_batches(modes),
        *_decayed_epsilon(final),
        *_formats(table, observed, final),
    ]


def _ratio(simulated: pd.DataFrame) -> list[dict]:
    """Of Adam's ratio r = m̂/√v̂, without a network."""
    return [
        check(
            "P2-std",
            "P2.ratio",
            "Gradients independent in time: std of r is √((1−β1)/(1+β1)).",
            "|simulated / closed form − 1|, β = (0.9, 0.999)",
            (simulated["std"] / simulated["closed_form"] - 1).abs(),
            below=0.02,
        ),
        check(
            "P2-bimodal",
            "P2.ratio",
            "Gradients correlated in time make r bimodal, from ρ ≈ 0.3 on.",
            "first share ρ that the dip test rejects, β = (0.9, 0.95)",
            simulated["rho"],
            below=0.35,
            note="with 5,000 coordinates; the test sees it at 0.3 with 50,000",
        ),
    ]


def _stages_before_the_burst(
    observed: pd.DataFrame, modes: pd.Series, begin: int, nearby: int
) -> list[dict]:
    gradient = analysis.median_before(observed, begin, nearby, GRADIENT)
    update = analysis.median_before(observed, begin, nearby, UPDATE)
    cosine = analysis.median_before(observed, begin, nearby, COSINE)
    return [
        check(
            "P2-1-stable",
            "P2.histograms",
            "Stage 1: in stable training updates have one mode.",
            f"share of points whose r has two modes, {TENSOR}",
            modes[QUIET],
            below=0.1,
        ),
        check(
            "P2-2-below",
            "P2.stages",
            "Stage 2: gradients of early layers fall below ε.",
            f"gradient RMS / ε before the burst, {TENSOR}",
            gradient[RAISED] / 1e-3,
            below=1.0,
            note=FORCED,
        ),
        check(
            "P2-3-frozen",
            "P2.stages",
            "Stage 3: the updates of early layers, whose gradients are below ε, collapse.",
            "update RMS before the burst, raised ε / default",
            update[RAISED] / update[DEFAULT],
            below=0.5,
            note=FORCED,
        ),
        check(
            "P2-4-correlated",
            "P2.stages",
            "Stage 4: frozen layers' gradients correlate in time.",
            "cosine of successive gradients before the burst, raised ε − default",
            cosine[RAISED] - cosine[DEFAULT],
            above=0.0,
            note=FORCED,
        ),
        check(
            "P2-4-batch",
            "P2.stages",
            "Stage 4: with a large batch the gradients of frozen layers correlate in time.",
            "cosine of successive gradients, batch × 8 − batch",
            cosine[LARGE_BATCH] - cosine[RAISED],
            above=0.0,
            note=FORCED,
        ),
    ]


def _stages_of_the_spike(
    observed: pd.DataFrame, height: pd.Series, final: pd.Series, begin: int, nearby: int
) -> list[dict]:
    update = analysis.median_before(observed, begin, nearby, UPDATE)
    update_at_burst = where(observed, step=begin).set_index(["method", "seed"])[UPDATE]
    return [
        check(
            "P2-5-snap",
            "P2.stages",
            "Stage 5: a rare batch lifts the updates of the frozen layers.",
            "update RMS at the burst / before",
            update_at_burst[RAISED] / update[RAISED],
            above=2.0,
            note=FORCED,
        ),
        check(
            "P2-5-spike",
            "P2.stages",
            "Stage 5: the loss explodes.",
            "height of the spike, burst − no burst, nats",
            height[RAISED] - height[RAISED_QUIET],
            above=EXPLODES,
            note=FORCED,
        ),
        check(
            "P2-5-epsilon",
            "P2.stages",
            "Frozen layers make the spike higher.",
            "height of the spike, raised ε − default, nats",
            height[RAISED] - height[DEFAULT],
            above=0.0,
            note=FORCED,
        ),
        check(
            "P2-6-returns",
            "P2.stages",
            "Stage 6: the loss comes back.",
            "final loss, burst − no burst, nats",
            final[RAISED] - final[RAISED_QUIET],
            below=SMALL,
            note=FORCED,
        ),
    ]


def _another_burst(height: pd.Series) -> list[dict]:
    """Batches of uniform noise instead of one token, repeated."""
    return [
        check(
            "P2-5-noise",
            "P2.remedies",
            "A burst of uniform noise makes the loss explode too.",
            "height of the spike, burst of noise − no burst, raised ε, nats",
            height[RAISED_NOISE] - height[RAISED_QUIET],
            above=EXPLODES,
            note=notes(FORCED, QUESTION),
        ),
        check(
            "P2-5-noise-epsilon",
            "P2.remedies",
            "Frozen layers make the spike after a burst of uniform noise higher.",
            "height of the spike after noise, raised ε − default, nats",
            height[RAISED_NOISE] - height[NOISE],
            above=0.0,
            note=notes(FORCED, QUESTION),
        ),
    ]


def _remedies(height: pd.Series) -> list[dict]:
    rows = []
    for name, (method, words) in REMEDIES.items():
        rows.append(
            check(
                f"P2-remedy-{name}",
                "P2.remedies",
                f"{words} makes the spike smaller.",
                "height of the spike − without remedy, nats",
                height[method] - height[RAISED],
                below=0.0,
                note=notes(FORCED, QUESTION if method == DECAYED else ""),
            )
        )
    return rows


def _repeated_batches(modes: pd.Series) -> list[dict]:
    return [
        check(
            "P2-full-batch",
            "P2.batches",
            "The whole corpus in every batch makes r bimodal.",
            "share of points whose r has two modes, one batch − new batches",
            modes["one batch, again and again"] - modes["every batch new"],
            above=0.5,
            note=QUESTION,
        )
    ]


def _decayed_epsilon(final: pd.Series) -> list[dict]:
    return [
        check(
            "P2-decay-loss",
            "P2.remedies",
            "Decaying ε during training improves the loss.",
            "final loss, decayed − raised, nats",
            final[DECAYED] - final[RAISED],
            below=0.0,
            note=QUESTION,
        )
    ]


def _formats(table: pd.DataFrame, observed: pd.DataFrame, final: pd.Series) -> list[dict]:
    """Gradients rounded to 8 bits, with and without a scaled loss, against float32."""
    coarse, scaled = "float8_e4m3fn, loss × 1", "float8_e4m3fn, loss × 64"
    end = analysis.end_means(table, observed[["key", "step", UPDATE]], [UPDATE])
    update = end.set_index(["method", "seed"])[UPDATE]
    return [
        check(
            "P2-underflow",
            "P2.formats",
            "Gradients that underflow freeze early layers.",
            f"update RMS at the end, {coarse} / float32",
            update[coarse] / update[QUIET],
            below=0.5,
            note=QUESTION,
        ),
        check(
            "P2-underflow-loss",
            "P2.formats",
            "Underflow costs loss.",
            f"final loss, {coarse} − float32, nats",
            final[coarse] - final[QUIET],
            above=SMALL,
            note=QUESTION,
        ),
        check(
            "P2-loss-scale",
            "P2.formats",
            "Scaling the loss repairs what underflow of gradients costs.",
            f"final loss, {scaled} − float32, nats",
            final[scaled] - final[QUIET],
            below=SMALL,
            note=QUESTION,
        ),
    ]
