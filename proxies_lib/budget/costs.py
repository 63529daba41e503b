"""What every figure costs, from the FLOPs of its runs, and what its published runs took."""

import math

import pandas as pd

from proxies_lib import paths
from proxies_lib.budget.tpu import CHIPS, UTILIZATION, name_of
from proxies_lib.config import Run, recipe
from proxies_lib.runs import tables
from proxies_lib.science import columns, protocol, report

GPU_FLOPS = 989e12  # H200, dense bf16 peak per second (its data sheet)
GPU_UTILIZATION = 0.3  # assumed share of it

TPUS = ("v5e", "v5p", "v6e")


def costs(scale: str) -> pd.DataFrame:
    """What each figure, each section (figure "all") and everything (section "all") costs at a
    scale.

    A row has distinct `runs`, `programs` to compile, training `flops` (Run.flops: of the model,
    without evaluation), and `more_runs`, `more_flops`: what it adds to the rows of its kind above
    it. Runs shared between sections count once. `core_seconds` are the FLOPs at the speed that a
    plan assumes, `measured_seconds` those of `measured_seconds`, nan where it lacks a run.

    Raises UserError where a published table is damaged.
    """
    from proxies_lib.science import figures, notebooks

    study = protocol.study(scale)
    seconds = measured_seconds(scale)
    figure_rows, section_rows = _Rows(seconds), _Rows(seconds)
    table = []
    # The overview comes last: it is made of others' runs.
    for path in notebooks.choose([], study):
        section, methods = path.name[:2], notebooks.grid_of(path, notebooks.reading(scale))
        for figure in figures.of_section(section):
            if section != "00" and figure.methods is not None:
                runs = figure.runs(methods, study)
                table.append(figure_rows.row(section, figure.name, runs))
        table.append(section_rows.row(section, "all", _runs_of(methods)))
    table.append(section_rows.row("all", "all", list(section_rows.seen)))
    frame = pd.DataFrame(table)
    hours = {f"{name}_hours": frame["flops"] / speed / 3600 for name, speed in speeds().items()}
    return frame.assign(**hours, core_seconds=frame["flops"] / speeds()["core"])


class _Rows:
    """Rows of one kind, figures or sections, each beside what the rows before it have seen."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds = seconds  # of a run, by recipe, where it is published
        self.seen: set[Run] = set()

    def row(self, section: str, figure: str, runs: list[Run]) -> dict:
        distinct = set(runs)
        more = distinct - self.seen
        self.seen |= distinct
        return {
            "section": section,
            "figure": figure,
            "runs": len(distinct),
            "more_runs": len(more),
            "programs": len({run.program for run in distinct}),
            "flops": _flops(distinct),
            "more_flops": _flops(more),
            "measured_seconds": self._took(distinct),
        }

    def _took(self, runs: set[Run]) -> float:
        """Core-seconds of all `runs`; nan where one of them is not published."""
        if not self.seconds:  # without a table no recipe needs to be made
            return math.nan
        return math.fsum(self.seconds.get(recipe(run), math.nan) for run in runs)


def measured_seconds(scale: str) -> dict[str, float]:
    """Seconds that each run of the published table of a scale took, by recipe; empty without one.

    On a CPU a run trains on one core, so these are core-seconds. Evaluation is in them, compilation
    is not. Raises UserError where the table is damaged.
    """
    runs = tables.exported_runs(paths.folder("papermill_runs") / scale)
    return {} if runs is None else dict(zip(runs["recipe"], runs["train_seconds"], strict=True))


def _flops(runs: set[Run]) -> float:
    return math.fsum(run.flops for run in runs)


def _runs_of(methods: dict[str, list[Run]]) -> list[Run]:
    return [run for runs in methods.values() for run in runs]


def speeds() -> dict[str, float]:
    """Model FLOPs per second of a device: a laptop's core as sweeps assume it, others a stated
    share of their peak."""
    from proxies_lib.runs.sweep import FLOPS_PER_SECOND

    chips = {kind: CHIPS[kind].flops * UTILIZATION for kind in TPUS}
    return {"core": FLOPS_PER_SECOND, "h200": GPU_FLOPS * GPU_UTILIZATION} | chips


def cost_by_size(scale: str) -> pd.DataFrame:
    """All distinct runs of a scale by N: their number, FLOPs, share of all FLOPs, and FLOPs of the
    dearest one."""
    from proxies_lib.science import notebooks

    runs = set()
    for path in notebooks.choose([], protocol.study(scale)):
        runs |= set(_runs_of(notebooks.grid_of(path, notebooks.reading(scale))))
    pairs = [(run.model.n_params, run.flops) for run in runs]
    by_size = pd.DataFrame(pairs, columns=["n_params", "flops"]).groupby("n_params")["flops"]
    table = by_size.agg(runs="count", flops="sum", dearest="max").reset_index()
    return table.assign(share=table["flops"] / table["flops"].sum())


# ------------------------------------------------------------------ as Markdown


def costs_table(scale: str) -> str:
    """Markdown of `costs`.

    What runs on a laptop is shown in hours of a core only: FLOPs tell nothing of the time that
    models of a few thousand parameters take on an accelerator.
    """
    on_laptop = protocol.study(scale).base.model.compute_dtype == "float32"
    devices = ["core"] if on_laptop else list(speeds())
    rows = []
    for row in costs(scale).to_dict("records"):
        counts = [row["runs"], row["more_runs"], row["programs"]]
        flops = [f"{row['flops']:.3g}", f"{row['more_flops']:.3g}"]
        hours = [_time(row[f"{device}_hours"]) for device in devices]
        rows.append([row["section"], row["figure"], *counts, *flops, *hours])
    head = ["section", "figure", "runs", "more", "programs", "FLOPs", "more"]
    head += [device.replace("h", "H") for device in devices]
    return report.markdown(pd.DataFrame(rows, columns=head))


def measured_table(scales: tuple[str, ...] = columns.SCALES) -> str:
    """Markdown of core-seconds by section, planned against measured, two columns per scale.

    "–" where a scale is not made for a section, or lacks a run of it in its published table.
    """
    table = pd.DataFrame()
    for scale in scales:
        found = costs(scale)
        sections = found[found["figure"] == "all"].set_index("section")
        for words in ("planned", "measured"):
            name = "core_seconds" if words == "planned" else "measured_seconds"
            cells = sections[name].map("{:,.0f}".format).mask(sections[name].isna())
            table = table.join(cells.rename(f"{scale}, {words}"), how="outer")
    table = table.fillna("–").rename_axis("section").reset_index()
    return report.markdown(table)


def sizes_table(scale: str) -> str:
    """Markdown of `cost_by_size`."""
    rows = []
    for row in cost_by_size(scale).itertuples():
        size = name_of(row.n_params) if row.n_params else "none (bigram)"
        rows.append([size, row.runs, f"{row.flops:.3g}", f"{row.share:.1%}", f"{row.dearest:.3g}"])
    head = ["N", "runs", "FLOPs", "share", "dearest run"]
    return report.markdown(pd.DataFrame(rows, columns=head))


def _time(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 99:
        return f"{seconds:.2g} s"
    if hours < 1.6:
        return f"{seconds / 60:.2g} min"
    if hours < 100:
        return f"{hours:.3g} h"
    rounded = float(f"{hours:.3g}")
    return f"{rounded:,.0f} h"
