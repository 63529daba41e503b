"""The protocol of each scale, fixed before any run: sizes, learning rates, seeds, windows."""

import ast
import dataclasses
import functools
import json
import sys
from dataclasses import dataclass

from proxies_lib.config import (
    FIELDS,
    Run,
    component,
    did_you_mean,
    digest,
    grid,
    refuse,
    replace,
    typed,
)


@dataclass(frozen=True)
class Study:
    """The protocol of one scale: what the notebooks sweep, and over which LR window S is taken.

    A size is (d_model, n_layers). Lists of sizes grow with N.
    """

    scale: str
    base: Run  # what every run of the scale has in common
    sizes: tuple
    lrs: tuple
    seeds: tuple
    # Peak LRs over which S is taken. The laptop's is the paper's, shifted with the optimum as P1's
    # appendix B advises; the night's lacks its lowest decade, where so short a training learns
    # little. S over PAPER_WINDOW is shown beside it.
    window: tuple
    widths: tuple  # the series of sizes of Figs 7 and E.3
    depths: tuple
    joint: tuple
    figure2: tuple  # the points of Fig. 2: (d_model, n_layers, lr)
    warmups: tuple  # shares of the steps (Fig. 5)
    fitted: tuple  # Fig. 9 is fitted on these sizes …
    held_out: tuple  # … and predicts these
    adam: tuple  # the size of section 10
    # Where a claim is no trend over the whole range of N, fewer sizes do; empty: all of them.
    few_sizes: tuple = ()
    # Where an arm costs much and is no headline, fewer seeds do; empty: all of them.
    few_seeds: tuple = ()
    adam_seeds: tuple = ()  # of section 10, whose spikes differ much; empty: those of the others
    ideas: tuple = ()  # the size of section 11; empty: that of section 10
    ideas_seeds: tuple = ()  # of section 11, which pairs methods by seed; empty: of the others
    # Rounds of section 11's bisection, at most. From half a decade three do; one more where a new
    # best LR moves the level of failing.
    bisection_rounds: int = 4
    coupled_lrs: tuple = ()  # peak LRs below the grid, for the arm of coupled decay in Fig. 6
    horizon: int = 2  # Fig. 4 trains up to this many times longer …
    drift: tuple = ()  # … and with each of these changes of fields, ((name, value), …)
    drift_lrs: tuple = (0.1,)  # peak LRs of Fig. 4; the first one is the paper's
    z_losses: tuple = ()  # further coefficients of z-loss in Fig. 4
    sections: tuple = ()  # what the scale is made for; empty: every section
    train: bool = False  # train what the store lacks
    publish: bool = False  # write figures and verdicts
    overrides: tuple = ()  # what one changed: (name, JSON value), sorted
    name: str = ""  # the name that one gave to a protocol of one's own

    def __post_init__(self):
        defaults = {
            "few_sizes": self.sizes,
            "few_seeds": self.seeds,
            "adam_seeds": self.seeds,
            "ideas": self.adam,
            "ideas_seeds": self.seeds,
        }
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def label(self) -> str:
        """Folder name of the outputs: the scale, or the scale and the name of one's own protocol.

        Without a name a changed protocol has the hash of what it changes: two never share a folder.
        """
        name = self.name
        if self.overrides and not name:
            name = digest(dict(self.overrides))[:8]
        return f"{self.scale}-{name}" if name else self.scale

    @property
    def given(self) -> dict:
        """The overrides with which `study` makes this protocol again, its name included."""
        overrides = {name: json.loads(value) for name, value in self.overrides}
        return overrides | ({"label": self.name} if self.name else {})

    @property
    def upper(self) -> tuple:
        """The five highest LRs of the window, for figures of the appendix that have no S."""
        return self.window[-5:]

    @property
    def lower_window(self) -> tuple:
        """The window, half a decade lower where the grid goes on: that of coupled decay (Fig. 6).

        P1 takes the better of its window and of the one from 1e-4 to 1e-1.
        """
        lrs = (*self.coupled_lrs, *self.lrs)
        begin = max(0, lrs.index(self.window[0]) - 1)
        return lrs[begin : begin + len(self.window)]

    @property
    def matched_decay(self) -> float:
        """The independent decay with P1's λ · steps, to one digit.

        λ alone says little about a much shorter training: the weights shrink by λ · steps.
        """
        paper = PAPER_RUN.hparams
        decay = paper.weight_decay * paper.steps / self.base.hparams.steps
        return float(f"{decay:.1g}")


def burst(steps: int, every: int) -> tuple[dict, dict]:
    """Where section 10 disturbs a training of `steps` that logs a point `every` steps.

    Two sets of fields of a run. The burst of rare batches begins half-way and takes 2 % of the
    steps; its first and its last step are logged points. The remedy "rewind and skip" goes back to
    a few points before the burst and leaves it out, up to one point after it.
    """
    begin = steps // 2 + every - 1
    length = max(1, steps // 48 // every) * every + 1
    back = 4 * every - 1
    rare = {"rare_batch": begin, "rare_batches": length}
    skip = {"skip_step": begin - back, "skip_batches": back + length + every}
    return rare, skip


PAPER_RUN = Run()  # the defaults of a run are P1's, section 2.1

PAPER_WINDOW = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

PAPER_WARMUPS = (0.0005, 0.005, 0.05, 0.1, 0.25)


@functools.cache
def scales() -> dict[str, Study]:
    """The six scales. Warm-up is 5 % of the steps everywhere, as in P1."""
    return {
        "smoke": _smoke(),
        "laptop": _laptop(),
        "night": _night(),
        "long": _long(),
        "gpu": _gpu(),
        "paper": _paper(),
    }


def _smoke() -> Study:
    """Runs every line in minutes, and judges nothing."""
    base = replace(
        PAPER_RUN,
        data="synthetic",
        d_model=8,
        n_layers=1,
        d_head=8,
        vocab_size=64,
        seq_len=32,
        compute_dtype="float32",
        batch_size=4,
        log_every=5,
        eval_batches=4,
        steps=40,
        warmup_steps=2,
    )
    return Study(
        "smoke",
        base,
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
        drift=((("compute_dtype", "bfloat16"),), (("logits_dtype", "bfloat16"),)),
        z_losses=(1e-2,),
        bisection_rounds=1,
    )


def _laptop() -> Study:
    """N grows by width at two layers: the same runs serve sections 01, 05 (widths) and 07 (fit)."""
    lrs = (*PAPER_WINDOW, 1.0)
    base = replace(
        PAPER_RUN,
        data="stdlib",
        d_model=16,
        n_layers=1,
        d_head=16,
        # The largest with which the largest model learns as much as a bigram model, in 384 steps.
        vocab_size=256,
        seq_len=64,
        compute_dtype="float32",
        batch_size=8,
        # The first logged point is at 2 % of the training, as Fig. 9's probe.
        log_every=8,
        eval_batches=20,
        steps=384,
        warmup_steps=19,
    )
    return Study(
        "laptop",
        base,
        sizes=((16, 2), (32, 2), (64, 2)),
        lrs=lrs,
        seeds=(0, 1, 2),
        window=lrs[1:],
        widths=((16, 2), (32, 2), (64, 2)),
        depths=((32, 2), (32, 4), (32, 8)),
        joint=((16, 1), (32, 2), (48, 4)),
        figure2=((16, 2, 3e-1), (64, 2, 1e-1)),
        warmups=PAPER_WARMUPS[1:],  # 0.05 % would be no step
        fitted=((16, 2), (32, 2), (48, 2), (64, 2)),
        held_out=((128, 2),),
        adam=(32, 4),
        adam_seeds=tuple(range(8)),
        ideas=(64, 2),
        ideas_seeds=tuple(range(5)),
        horizon=8,
        drift=((("compute_dtype", "bfloat16"),), (("vocab_size", 2048),)),
    )


def _night() -> Study:
    """A night on a few cores: 15 times the laptop's tokens, 4 times its largest N.

    docs/night.md says why so, what it can decide, and what was predicted.
    """
    base = replace(
        _laptop().base,
        batch_size=32,
        # The first logged point is at 2 % of the training, as Fig. 9's probe.
        log_every=40,
        steps=1920,
        warmup_steps=96,
    )
    sizes = ((16, 2), (32, 2), (64, 2), (128, 2))
    return Study(
        "night",
        base,
        sizes=sizes,
        lrs=PAPER_WINDOW,
        seeds=(0, 1, 2, 3, 4),
        window=PAPER_WINDOW[2:],
        widths=sizes,
        depths=((64, 2), (64, 4), (64, 8)),
        joint=((32, 1), (64, 2), (80, 5)),
        figure2=((32, 2, 3e-1), (128, 2, 1e-1)),
        warmups=(0.0005, 0.005, 0.05, 0.25),
        fitted=sizes,
        held_out=((256, 2),),
        adam=(32, 4),
        ideas=(64, 2),
        few_sizes=sizes[:3],
        few_seeds=(0, 1, 2),
        adam_seeds=tuple(range(8)),
        horizon=4,
        drift=((("compute_dtype", "bfloat16"),), (("logits_dtype", "bfloat16"),)),
        z_losses=(1e-2, 1e-1),
    )


def _long() -> Study:
    """The paper's own number of steps, warm-up, decay and learning rates, on tiny models.

    For what needs time: λ · steps and η · steps are those of the paper.
    """
    base = replace(
        _laptop().base,
        steps=PAPER_RUN.hparams.steps,
        warmup_steps=PAPER_RUN.hparams.warmup_steps,
        log_every=1000,
    )
    sizes = ((16, 2), (32, 2))
    in_bfloat16 = ("compute_dtype", "bfloat16")
    larger_vocabulary = ("vocab_size", 1024)
    return Study(
        "long",
        base,
        sizes=sizes,
        lrs=PAPER_WINDOW,
        seeds=(0, 1, 2),
        window=PAPER_WINDOW,
        coupled_lrs=(1e-4,),
        widths=sizes,
        depths=sizes[-1:],
        joint=sizes,
        figure2=((16, 2, 3e-1), (32, 2, 1e-1)),
        warmups=PAPER_WARMUPS,
        fitted=sizes,
        held_out=((64, 2),),
        adam=(32, 4),
        few_sizes=sizes[:1],
        horizon=1,
        drift=(
            (("logits_dtype", "bfloat16"),),
            (in_bfloat16,),
            (larger_vocabulary,),
            (larger_vocabulary, in_bfloat16),
        ),
        drift_lrs=(0.1, 0.3),
        z_losses=(1e-2, 1e-1),
        sections=("00", "01", "02", "04", "08"),
    )


def _gpu() -> Study:
    base = replace(
        PAPER_RUN,
        d_model=64,
        n_layers=1,
        seq_len=256,
        batch_size=64,
        log_every=50,
        eval_batches=40,
        steps=10_000,
        warmup_steps=500,
    )
    return Study(
        "gpu",
        base,
        sizes=((128, 3), (256, 3), (512, 3), (512, 6), (768, 6)),
        lrs=(*PAPER_WINDOW, 1.0),
        seeds=(0, 1),
        window=PAPER_WINDOW,
        coupled_lrs=(1e-4,),
        widths=((128, 6), (256, 6), (512, 6)),
        depths=((256, 3), (256, 6), (256, 12), (256, 24)),
        joint=((128, 3), (256, 3), (512, 3), (512, 6)),
        figure2=((256, 3, 1e-1), (768, 6, 3e-2)),
        warmups=PAPER_WARMUPS,
        fitted=((128, 3), (256, 3), (512, 3), (512, 6), (768, 6)),
        held_out=((1024, 12),),
        adam=(512, 6),
        horizon=4,
    )


def _paper() -> Study:
    """P1's own sizes, steps and batch, with one seed."""
    sizes = (
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
    return Study(
        "paper",
        replace(PAPER_RUN, d_model=64, n_layers=1),
        sizes=sizes,
        lrs=PAPER_WINDOW,
        seeds=(0,),
        window=PAPER_WINDOW,
        coupled_lrs=(1e-4,),
        widths=((256, 6), (512, 6), (1024, 6), (2048, 6)),
        depths=((512, 3), (512, 6), (512, 12), (512, 24), (512, 48), (512, 96)),
        joint=sizes[:-1],
        figure2=((512, 3, 1e-1), (4096, 24, 1e-2)),
        warmups=PAPER_WARMUPS,
        fitted=sizes[:-1],
        held_out=sizes[-1:],
        adam=(1024, 12),
        horizon=1,
    )


# A field that the notebooks sweep → the list of a study that one sets instead.
SWEPT = {"lr": "lrs", "seed": "seeds", "d_model": "sizes", "n_layers": "sizes"}

LISTS = ("sizes", "lrs", "seeds")

SEEDS = ("seeds", "few_seeds", "adam_seeds", "ideas_seeds")  # of a study: all that it has


def study(
    scale: str, overrides: dict | None = None, train: bool = False, publish: bool = False
) -> Study:
    """The protocol of `scale`, with `overrides` of LISTS or of any field of a run.

    The override `label` changes no run: it names the folder of the outputs, <scale>-<label>.
    Raises UserError on an unknown scale or name, a wrong type, or a swept field (set its list
    instead); and, in a notebook, on a parameter of papermill's that the notebook does not have.
    """
    _refuse_unknown_injected()
    if not isinstance(scale, str) or scale not in scales():
        near = did_you_mean(scale, scales())
        refuse("scale", scale, f"must be one of {', '.join(scales())}{near}")
    if not isinstance(overrides or {}, dict):
        refuse("overrides", overrides, "must be a dictionary of names and values")
    overrides = dict(overrides or {})
    own_name = ""
    if "label" in overrides:
        own_name = component("label", typed("label", overrides.pop("label"), str))
    chosen, fields, lists = scales()[scale], {}, {}
    for name, value in overrides.items():
        if name in LISTS:
            lists[name] = _typed_list(name, value)
        elif name in FIELDS and name not in SWEPT:
            fields[name] = value
        else:
            _refuse_override(name, value)
    lists |= _following(lists, chosen)
    base = replace(chosen.base, **fields)
    # Every run of the sweeps must be possible: `grid` raises where one is not.
    sizes, lrs = lists.get("sizes", chosen.sizes), lists.get("lrs", chosen.lrs)
    grid(base, {("d_model", "n_layers"): sizes, "lr": lrs})
    grid(base, {"seed": lists.get("seeds", chosen.seeds)})
    return dataclasses.replace(
        chosen,
        base=base,
        train=train,
        publish=publish or train,
        overrides=tuple(sorted((name, json.dumps(value)) for name, value in overrides.items())),
        name=own_name,
        **lists,
    )


# The first line of the cell that papermill injects behind the one tagged `parameters`.
INJECTED = "# Parameters\n"


def _refuse_unknown_injected():
    """Refuse a parameter that papermill injected and the notebook's parameters cell lacks.

    Papermill puts a slip (`-p scal smoke`) into its log and executes the notebook all the same,
    at the default scale. The kernel's list of executed cells, `In`, shows what was injected.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    cells = [str(cell) for cell in shell.user_ns.get("In", [])] if shell else []
    injected = [i for i, cell in enumerate(cells) if i and cell.startswith(INJECTED)]
    if not injected:
        return
    own = _assigned(cells[injected[-1] - 1])
    again = any("scale" in _assigned(cell) for cell in cells[injected[-1] + 1 :])
    if "scale" not in own or again:  # no notebook of ours, or its own values were set again
        return
    for name in _assigned(cells[injected[-1]]):
        if name not in own:
            allowed = f"unknown parameter; allowed are {', '.join(own)}"
            refuse(name, shell.user_ns.get(name), allowed)


def _assigned(cell: str) -> list[str]:
    """The names that a cell assigns, one by one and at its top level; of no Python, none."""
    try:
        nodes = ast.parse(cell).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _refuse_override(name: str, value):
    if name in SWEPT:
        kind = int if name != "lr" else float
        typed(name, value, kind)
        refuse(name, value, f"is swept by the notebooks; set {SWEPT[name]} instead")
    allowed = ["label", *LISTS, *(field for field in FIELDS if field not in SWEPT)]
    near = did_you_mean(name, allowed)
    refuse(name, value, f"unknown parameter{near}; allowed are {', '.join(allowed)}")


def _following(lists: dict, chosen: Study) -> dict:
    """The lists of a study that follow from those that one sets."""
    sizes, lrs = lists.get("sizes", chosen.sizes), lists.get("lrs", chosen.lrs)
    following: dict[str, tuple] = {}
    if "lrs" in lists:
        following |= {"window": lrs, "coupled_lrs": ()}
    if "sizes" in lists or "lrs" in lists:
        following["figure2"] = ((*sizes[0], lrs[-1]), (*sizes[-1], lrs[-1]))
    if "sizes" in lists:
        series = ("widths", "depths", "joint", "fitted", "few_sizes")
        following |= dict.fromkeys(series, sizes)
    if "seeds" in lists:
        following |= dict.fromkeys(SEEDS, lists["seeds"])
    return following


def _typed_list(name: str, value):
    if not isinstance(value, (list, tuple)) or not value:
        refuse(name, value, "must be a list that is not empty, such as [0.01, 0.1]")
    if name == "sizes":
        if not all(isinstance(v, (list, tuple)) and len(v) == 2 for v in value):
            refuse(name, value, "must be a list of [d_model, n_layers]")
        entries = [tuple(typed(name, x, int) for x in v) for v in value]
    else:
        entries = sorted(typed(name, v, float if name == "lrs" else int) for v in value)
    if len(set(entries)) < len(entries):
        refuse(name, value, "must have each entry once")
    return tuple(entries)
