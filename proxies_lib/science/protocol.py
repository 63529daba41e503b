"""The protocol of each scale, fixed before any run."""

import dataclasses
import functools
import json
from dataclasses import dataclass

from proxies_lib.config import (
    FIELDS,
    HyperParams,
    ModelConfig,
    Run,
    TrainConfig,
    component,
    digest,
    grid,
    refuse,
    replace,
    typed,
)


@dataclass(frozen=True)
class Study:
    """The protocol of one scale, fixed before any run: what notebooks sweep, and over which LR window S is taken.

    `window` is the scale's window of peak learning rates for S, three decades shifted with the optimum as P1's
    appendix B advises; PAPER_WINDOW is shown beside it. `widths`, `depths` and `joint` are the series of Figs 7 and
    E.3. `figure2` are the (size, LR) pairs of Fig. 2, `warmups` shares of the steps (Fig. 5). Fig. 9 is fitted on the
    sizes `fitted` and predicts `held_out`. Fig. 4 lengthens training by `horizon` and tries other `vocabularies`.
    Section 10 looks at one size, `adam`. `train` trains what the store lacks; `publish` writes figures and verdicts.
    """

    scale: str
    base: Run
    sizes: tuple  # (d_model, n_layers), growing N
    lrs: tuple
    seeds: tuple
    window: tuple
    widths: tuple
    depths: tuple
    joint: tuple
    figure2: tuple
    warmups: tuple
    fitted: tuple
    held_out: tuple
    adam: tuple
    horizon: int = 2
    vocabularies: tuple = ()
    train: bool = False
    publish: bool = False
    overrides: tuple = ()
    name: str = ""

    @property
    def label(self) -> str:
        """Folder name of the outputs: the scale, or the scale and the name of a protocol of one's own.

        Without a name a changed protocol has the hash of what it changes, so two never share a folder.
        """
        name = self.name or (digest(dict(self.overrides))[:8] if self.overrides else "")
        return f"{self.scale}-{name}" if name else self.scale

    @property
    def upper(self) -> tuple:
        """The five highest LRs of the window: figures of the appendix that have no S are drawn over these."""
        return self.window[-5:]

    @property
    def matched_decay(self) -> float:
        """The independent decay with P1's λ · steps, one digit: λ alone says little about a much shorter training."""
        return float(
            f"{PAPER_RUN.hparams.weight_decay * PAPER_RUN.hparams.steps / self.base.hparams.steps:.1g}"
        )


def burst(steps: int, every: int) -> tuple[dict, dict]:
    """Where section 10 disturbs a training of `steps`, observed at the last step of each `every`, as fields of a run: half-way,
    for 2 % of the steps, first and last one observed; and what goes back to a few points before it and leaves it out."""
    begin, length, back = (
        steps // 2 + every - 1,
        max(1, steps // 48 // every) * every + 1,
        4 * every - 1,
    )
    skip = {"skip_step": begin - back, "skip_batches": back + length + every}
    return {"rare_batch": begin, "rare_batches": length}, skip


PAPER_RUN = Run()

PAPER_WINDOW = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

PAPER_WARMUPS = (0.0005, 0.005, 0.05, 0.1, 0.25)


def _base(data, d_head, vocab, seq, dtype, batch, log_every, evals, steps, warmup) -> Run:
    return Run(
        data,
        ModelConfig(d_head, 1, d_head, vocab, seq, "per_head", dtype),
        TrainConfig(batch, log_every, evals),
        HyperParams(steps=steps, warmup_steps=warmup),
    )


@functools.cache
def scales() -> dict[str, Study]:
    """The four scales. Warm-up is 5 % of the steps everywhere, as in P1.

    On a laptop N grows by width at two layers: the same runs are then the width series of section 05 and the fit of
    section 07. Its vocabulary is the largest with which the largest model learns as much from 384 steps as a bigram
    model does; its first logged point is at 2 % of the training, as Fig. 9's probe. A warm-up of 0.05 % would be no step.
    """
    half_decades = (*PAPER_WINDOW, 1.0)
    named = (
        (256, 3),
        (512, 3),
        (512, 6),
        (768, 6),
        (768, 12),
        (1024, 12),
        (1024, 24),
        (2048, 24),
        (4096, 24),
    )
    return {
        "smoke": Study(
            "smoke",
            _base("synthetic", 8, 64, 32, "float32", 4, 5, 4, 40, 2),
            sizes=((8, 1), (16, 1)),
            lrs=(1e-2, 1e-1, 1.0),
            seeds=(0, 1),
            window=(1e-2, 1e-1, 1.0),
            widths=((8, 1), (16, 1)),
            depths=((8, 1), (8, 2)),
            joint=((8, 1), (16, 2)),
            figure2=((8, 1, 1.0), (16, 1, 1e-1)),
            warmups=(0.05, 0.25),
            fitted=((8, 1), (16, 1)),
            held_out=((24, 1),),
            adam=(8, 2),
        ),
        "laptop": Study(
            "laptop",
            _base("stdlib", 16, 256, 64, "float32", 8, 8, 20, 384, 19),
            sizes=((16, 2), (32, 2), (64, 2)),
            lrs=half_decades,
            seeds=(0, 1, 2),
            window=half_decades[1:],
            widths=((16, 2), (32, 2), (64, 2)),
            depths=((32, 2), (32, 4), (32, 8)),
            joint=((16, 1), (32, 2), (48, 4)),
            figure2=((16, 2, 3e-1), (64, 2, 1e-1)),
            warmups=PAPER_WARMUPS[1:],
            fitted=((16, 2), (32, 2), (48, 2), (64, 2)),
            held_out=((128, 2),),
            adam=(32, 4),
            horizon=8,
            vocabularies=(2048,),
        ),
        "gpu": Study(
            "gpu",
            _base("c4", 64, 32101, 256, "bfloat16", 64, 50, 40, 10_000, 500),
            sizes=((128, 3), (256, 3), (512, 3), (512, 6), (768, 6)),
            lrs=half_decades,
            seeds=(0, 1),
            window=PAPER_WINDOW,
            widths=((128, 6), (256, 6), (512, 6)),
            depths=((256, 3), (256, 6), (256, 12), (256, 24)),
            joint=((128, 3), (256, 3), (512, 3), (512, 6)),
            figure2=((256, 3, 1e-1), (768, 6, 3e-2)),
            warmups=PAPER_WARMUPS,
            fitted=((128, 3), (256, 3), (512, 3), (512, 6), (768, 6)),
            held_out=((1024, 12),),
            adam=(512, 6),
            horizon=4,
        ),
        "paper": Study(
            "paper",
            _base("c4", 64, 32101, 512, "bfloat16", 256, 100, 20, 100_000, 5_000),
            sizes=named,
            lrs=PAPER_WINDOW,
            seeds=(0,),
            window=PAPER_WINDOW,
            widths=((256, 6), (512, 6), (1024, 6), (2048, 6)),
            depths=((512, 3), (512, 6), (512, 12), (512, 24), (512, 48), (512, 96)),
            joint=named[:-1],
            figure2=((512, 3, 1e-1), (4096, 24, 1e-2)),
            warmups=PAPER_WARMUPS,
            fitted=named[:-1],
            held_out=named[-1:],
            adam=(1024, 12),
            horizon=1,
        ),
    }


SWEPT = {"lr": "lrs", "seed": "seeds", "d_model": "sizes", "n_layers": "sizes"}


def study(
    scale: str, overrides: dict | None = None, train: bool = False, publish: bool = False
) -> Study:
    """The protocol of `scale`, with `overrides` of its lists (sizes, lrs, seeds) or of any field of a run.

    The override `label` changes no run: it names the folder of the outputs, <scale>-<label>.
    Raises UserError on an unknown scale or name, a wrong type, or a swept field (set its list instead).
    """
    if not isinstance(scale, str) or scale not in scales():
        refuse("scale", scale, f"must be one of {', '.join(scales())}")
    if not isinstance(overrides or {}, dict):
        refuse("overrides", overrides, "must be a dictionary of names and values")
    overrides = dict(overrides or {})
    own_name = (
        component("label", typed("label", overrides.pop("label"), str))
        if "label" in overrides
        else ""
    )
    chosen, fields, lists = scales()[scale], {}, {}
    for name, value in overrides.items():
        if name in SWEPT:
            kind = int if name != "lr" else float
            typed(name, value, kind)
            refuse(name, value, f"is swept by the notebooks; set {SWEPT[name]} instead")
        if name in ("sizes", "lrs", "seeds"):
            lists[name] = _typed_list(name, value)
        elif name in FIELDS:
            fields[name] = value
        else:
            allowed = ", ".join(
                ["label", "sizes", "lrs", "seeds", *(f for f in FIELDS if f not in SWEPT)]
            )
            refuse(name, value, f"unknown parameter; allowed are {allowed}")
    if "lrs" in lists:
        lists["window"] = lists["lrs"]
    if "sizes" in lists or "lrs" in lists:
        sizes, lrs = lists.get("sizes", chosen.sizes), lists.get("lrs", chosen.lrs)
        lists["figure2"] = ((*sizes[0], lrs[-1]), (*sizes[-1], lrs[-1]))
    if "sizes" in lists:
        lists |= dict.fromkeys(("widths", "depths", "joint", "fitted"), sizes)
    base = replace(chosen.base, **fields)
    grid(
        base,
        {
            ("d_model", "n_layers"): lists.get("sizes", chosen.sizes),
            "lr": lists.get("lrs", chosen.lrs),
        },
    )
    grid(base, {"seed": lists.get("seeds", chosen.seeds)})
    changed = tuple(sorted((k, json.dumps(v)) for k, v in overrides.items()))
    return dataclasses.replace(
        chosen,
        base=base,
        train=train,
        publish=publish or train,
        overrides=changed,
        name=own_name,
        **lists,
    )


def _typed_list(name: str, value):
    if not isinstance(value, (list, tuple)) or not value:
        refuse(name, value, "must be a list that is not empty")
    if name == "sizes":
        if not all(isinstance(v, (list, tuple)) and len(v) == 2 for v in value):
            refuse(name, value, "must be a list of [d_model, n_layers]")
        return tuple(tuple(typed(name, x, int) for x in v) for v in value)
    return tuple(sorted(typed(name, v, float if name == "lrs" else int) for v in value))
