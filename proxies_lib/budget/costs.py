"""What every figure costs, from the FLOPs of its runs."""

import math

import pandas as pd

from proxies_lib.budget.tpu import CHIPS, UTILIZATION, name_of
from proxies_lib.config import Run
from proxies_lib.science import protocol

GPU_FLOPS, GPU_UTILIZATION = (
    989e12,
    0.3,
)  # H200, dense bf16 peak per second (its data sheet); assumed share of it


# ------------------------------------------------------------------ what figures cost


def costs(scale: str) -> pd.DataFrame:
    """What each figure, each section (figure "all") and everything (section "all") costs at a scale.

    A row has distinct `runs`, `programs` to compile, training `flops` (Run.flops: of the model, without evaluation),
    and `more_runs`, `more_flops`: what it adds to the rows of its kind above it. Runs shared between sections count
    once; the overview comes last, made of others' runs.
    """
    from proxies_lib.science import figures, notebooks

    study, rows = protocol.study(scale), []
    seen: dict[str, set] = {"figure": set(), "section": set()}

    def add(kind: str, section: str, figure: str, runs: list[Run]):
        distinct = set(runs)
        more = distinct - seen[kind]
        seen[kind] |= distinct
        total, added = (math.fsum(run.flops for run in each) for each in (distinct, more))
        programs = len({run.program for run in distinct})
        rows.append(
            {
                "section": section,
                "figure": figure,
                "runs": len(distinct),
                "more_runs": len(more),
                "programs": programs,
                "flops": total,
                "more_flops": added,
            }
        )

    for path in notebooks.choose([]):
        section, methods = path.name[:2], notebooks.grid_of(path, notebooks.reading(scale))
        for figure in figures.of_section(section):
            if (
                section != "00" and figure.methods is not None
            ):  # the overview shows runs of other sections
                add("figure", section, figure.name, figure.runs(methods, study))
        add("section", section, "all", [run for runs in methods.values() for run in runs])
    add("section", "all", "all", list(seen["section"]))
    table = pd.DataFrame(rows)
    return table.assign(
        **{f"{name}_hours": table["flops"] / speed / 3600 for name, speed in speeds().items()}
    )


def speeds() -> dict[str, float]:
    """Model FLOPs per second of a device: a laptop's core as sweeps assume, others a stated share of their peak."""
    from proxies_lib.runs.sweep import FLOPS_PER_SECOND

    chips = {kind: CHIPS[kind].flops * UTILIZATION for kind in ("v5e", "v5p", "v6e")}
    return {"core": FLOPS_PER_SECOND, "h200": GPU_FLOPS * GPU_UTILIZATION} | chips


def cost_by_size(scale: str) -> pd.DataFrame:
    """All distinct runs of a scale by N: their number, FLOPs, share of all FLOPs, and FLOPs of the dearest one."""
    from proxies_lib.science import notebooks

    grids = [notebooks.grid_of(path, notebooks.reading(scale)) for path in notebooks.choose([])]
    runs = {run for grid in grids for each in grid.values() for run in each}
    table = pd.DataFrame(
        [(run.model.n_params, run.flops) for run in runs], columns=["n_params", "flops"]
    )
    table = (
        table.groupby("n_params")["flops"]
        .agg(runs="count", flops="sum", dearest="max")
        .reset_index()
    )
    return table.assign(share=table["flops"] / table["flops"].sum())


def _time(hours: float) -> str:
    seconds = hours * 3600
    if hours < 1.6:
        return f"{seconds:.2g} s" if seconds < 99 else f"{seconds / 60:.2g} min"
    return f"{float(f'{hours:.3g}'):,.0f} h" if hours >= 100 else f"{hours:.3g} h"


def costs_table(scale: str) -> str:
    """Markdown of `costs`. What runs on a laptop is shown in hours of a core only: FLOPs tell nothing of the time that
    models of a few thousand parameters take on an accelerator."""
    small = protocol.study(scale).base.model.compute_dtype == "float32"
    names = {"core": "core"} if small else {name: name.replace("h", "H") for name in speeds()}
    head = ["section", "figure", "runs", "more", "programs", "FLOPs", "more", *names.values()]
    lines = [f"| {' | '.join(head)} |", f"{'| --- ' * len(head)}|"]
    for row in costs(scale).to_dict("records"):
        numbers = [
            row["runs"],
            row["more_runs"],
            row["programs"],
            f"{row['flops']:.3g}",
            f"{row['more_flops']:.3g}",
        ]
        hours = [_time(row[f"{name}_hours"]) for name in names]
        lines.append(
            f"| {' | '.join(map(str, (row['section'], row['figure'], *numbers, *hours)))} |"
        )
    return "\n".join(lines)


def sizes_table(scale: str) -> str:
    """Markdown of `cost_by_size`."""
    lines = ["| N | runs | FLOPs | share | dearest run |", "| --- | --- | --- | --- | --- |"]
    for row in cost_by_size(scale).itertuples():
        size = name_of(row.n_params) if row.n_params else "none (bigram)"
        lines.append(
            f"| {size} | {row.runs} | {row.flops:.3g} | {row.share:.1%} | {row.dearest:.3g} |"
        )
    return "\n".join(lines)
