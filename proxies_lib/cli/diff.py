"""diff: two labels side by side, from their tables and verdicts."""

import json
import textwrap

from proxies_lib.cli import completion, screen
from proxies_lib.cli.options import add_json, add_option, add_published

MOST_LISTED = 12  # kinds of runs of a list; `--json` has every key


def add(command):
    diff = command(
        "diff",
        _diff,
        "compare two labels: protocols, verdicts that changed, final losses of common runs",
        """
        diff laptop laptop-xeon                  # the same protocol on two machines
        diff laptop laptop                       # one's own runs beside the published ones
        """,
    )
    for name in ("one", "other"):
        words = "a scale or a label"
        add_option(diff, name, metavar="LABEL", help=words, complete=completion.labels)
    add_published(diff)
    add_json(diff)


def _diff(options):
    from proxies_lib.science import difference

    one, other = difference.sides(options.one, options.other, options.published)
    if options.json:
        return screen.print_json(_diff_json(one, other))
    _print_protocols(one, other)
    _print_changed(one, other)
    _print_losses(one, other)


def _print_protocols(one, other):
    from proxies_lib.science import difference

    print(screen.painted(f"{one.name} | {other.name}", "bold"))
    for each in (one, other):
        if each.study is None:
            print(f"  {each.name}: its protocol is not known")
        elif not each.says_so:
            print(f"  {each.name} has no protocol.json: taken for that of scale {each.study.scale}")
    rows = {name: map(screen.text, pair) for name, pair in difference.protocols(one, other).items()}
    screen.heading("Protocols")
    _print_pairs(one, other, rows, "the same")
    screen.heading("Trained by")
    origins = difference.origins(one, other)
    rows = {name: (", ".join(pair) or "–" for pair in pairs) for name, pairs in origins.items()}
    _print_pairs(one, other, rows, "the same")


def _print_pairs(one, other, rows: dict, none: str):
    if rows:
        screen.table(["", one.name, other.name], [[name, *pair] for name, pair in rows.items()])
    else:
        print(f"  {none}")


def _print_changed(one, other):
    from proxies_lib.science import difference, report

    screen.heading("Verdicts")
    if one.verdicts is None or other.verdicts is None:
        without = one if one.verdicts is None else other
        return print(f"  {without.name} has none")
    both = report.against(one.verdicts, other.verdicts)
    print(f"  the same: {both['same'].sum()} of {len(both)} claims that both judge")
    for each, beside in ((one, other), (other, one)):
        more = sorted(set(each.verdicts["claim"]) - set(beside.verdicts["claim"]))
        if more:
            print(_wrapped(f"only {each.name} judges {len(more)}: {', '.join(more)}"))
    rows = [
        [row["claim"], _judged(row, ""), _judged(row, "_other"), row["why"]]
        for row in difference.changed(one, other).to_dict("records")
    ]
    if rows:
        screen.table(["claim", one.name, other.name, "why"], rows)


def _judged(row: dict, suffix: str) -> str:
    """A verdict, its effect with the interval, and n."""
    from proxies_lib.science import report

    effect = report.rounded(*(row[f"{name}{suffix}"] for name in ("effect", "lo", "hi")))
    return f"{screen.verdict(row[f'verdict{suffix}'])} {effect}, {row[f'n{suffix}']}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 98, initial_indent="  ", subsequent_indent="    ")


def _print_losses(one, other):
    from proxies_lib.science import difference

    screen.heading("Runs")
    found = difference.losses(one, other)
    if found is None:
        without = one if one.runs is None else other
        return print(f"  {without.name} has no table of runs")
    common = found.common
    same = int(common["same_key"].sum())
    print(f"  common: {len(common)}, {same} of them on the same corpus")
    for each, rows in zip((one, other), found.only, strict=True):
        print(f"  only {each.name}: {len(rows)}")
        counts = difference.kinds(rows, each.study)
        for words, count in counts.head(MOST_LISTED).items():
            print(_wrapped(f"  {count} {words}"))
        if len(counts) > MOST_LISTED:
            print(f"    and other kinds: {len(counts) - MOST_LISTED}; --json has the keys")
    if not len(common):
        return
    screen.heading("Final losses of common runs, absolute difference in nats per token")
    rows = [_spread_cells(f"{row['lr']:g}", row) for row in _records(difference.by_lr(common))]
    rows.append(_spread_cells("all", difference.overall(common)))
    screen.table(["LR", "runs", "equal", "median", "largest", "diverged in one only"], rows)
    worst = common.loc[common["difference"].idxmax()]
    print(
        f"  largest: {worst['final_loss']:.6f} | {worst['final_loss_other']:.6f}, "
        f"`proxies show {worst['key']}`"
    )


def _records(frame) -> list[dict]:
    return frame.to_dict("records")


def _spread_cells(name: str, row: dict) -> list[str]:
    sizes = [f"{row[key]:.2g}" for key in ("median", "largest")]
    return [name, str(row["runs"]), str(row["equal"]), *sizes, str(row["diverged_in_one"] or "–")]


def _diff_json(one, other) -> dict:
    from proxies_lib.science import difference

    found = difference.losses(one, other)
    runs = None
    if found is not None:
        runs = {
            "common": len(found.common),
            "same_corpus": int(found.common["same_key"].sum()),
            "only": [rows["key"].tolist() for rows in found.only],
            "difference": difference.overall(found.common),
            "by_lr": _records(difference.by_lr(found.common)),
        }
    changed = difference.changed(one, other)
    return {
        "labels": [one.name, other.name],
        "protocols": difference.protocols(one, other),
        "trained_by": difference.origins(one, other),
        "verdicts_changed": json.loads(changed.to_json(orient="records")),
        "runs": runs,
    }
