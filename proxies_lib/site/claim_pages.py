"""Start, scoreboard, and a page per claim."""

import re

from proxies_lib import config, pages
from proxies_lib.science import columns, figures, report
from proxies_lib.science.figures import FIGURES
from proxies_lib.site import contents, documents, origins, shapes, verdicts
from proxies_lib.site.contents import Label
from proxies_lib.site.plan import SCOREBOARD, START, Pages, Plan, in_turn, page_of_claim, png_of
from proxies_lib.site.verdicts import Claim

NEGATIVES = "docs/negatives.md"  # its headings: "### claim, claim: what they say"


def make(plan: Plan) -> Pages:
    """All of them. Raises UserError where the names of two claims make one address."""
    return {**_start(plan), **_scoreboard(plan), **_claims(plan)}


# ------------------------------------------------------------------ start


def _start(plan: Plan) -> Pages:
    values = _first_figure(plan)
    if plan.contents.boards:
        values["digest"] = _digest(plan)
        values["tally"] = pages.front_tally(columns.at_front(plan.contents.boards))
        values["moves"] = _move_sentences(plan)
    return plan.page(START, "start", title="Start", at=START, **values)


def _first_figure(plan: Plan) -> dict:
    """Figure 1 at the label that README shows it at, else at the first one that has it."""
    figure, shown = FIGURES["1"], plan.contents
    front = shown.front(figure.section)
    having = sorted(
        filter(lambda label: label.has(figure), shown.labels),
        key=lambda label: label.name != front,
    )
    if not having:
        return {"drawn": None, "digest": None}
    label = having[0]
    return {
        "drawn": shapes.loss_curves(contents.frame_of(label, figure)),
        "first_label": label.name,
        "first_page": f"{plan.figure_page(figure.name)}#{label.name}",
        "first_picture": png_of(label, figure),
        "has_charts": True,
        "digest": None,
    }


def _digest(plan: Plan) -> list[dict]:
    """A row per section: what came out, how many checks have each verdict, its figures."""
    words = pages.sentences(contents.project_file(pages.README) or "")
    rows = []
    for section, found in verdicts.per_section(plan.claims).items():
        scale = columns.front(plan.contents.boards, section)
        judged = [claim.by_label[scale].verdict for claim in found if scale in claim.by_label]
        page = plan.notebook_page(plan.contents.label(scale), section)
        drawn = [figure.name for figure in figures.of_section(section) if figure in plan.figures]
        rows.append(
            {
                "section": section,
                "scale": scale,
                "title": contents.title_of(section),
                "page": page or f"{SCOREBOARD}?section={section}",
                "words": documents.inline(words.get((section, scale), "")),
                "counts": verdicts.counts(judged),
                "figures": drawn,
            }
        )
    return rows


# ------------------------------------------------------------------ scoreboard


def _scoreboard(plan: Plan) -> Pages:
    boards = plan.contents.boards
    sections = verdicts.per_section(plan.claims)
    return plan.page(
        SCOREBOARD,
        "scoreboard",
        title="Scoreboard",
        at=SCOREBOARD,
        wide=True,
        claims=plan.claims,
        labels=list(boards),
        sections={section: contents.title_of(section) for section in sections},
        tallies={label: report.tally(rows) for label, rows in boards.items()},
        moves=_move_sentences(plan),
        moved={claim.name: _moved(plan, claim) for claim in plan.claims},
        absent=[scale for scale in columns.SCALES if scale not in boards],
    )


def _move_sentences(plan: Plan) -> list[str]:
    labels = list(plan.contents.boards)
    return [verdicts.move_sentence(plan.claims, labels[0], label) for label in labels[1:]]


def _moved(plan: Plan, claim: Claim) -> dict[str, tuple[str, str]]:
    """By label, from which verdict to which a claim moves."""
    first, *others = plan.contents.boards
    moves = {label: claim.move(first, label) for label in others}
    return {label: move for label, move in moves.items() if move is not None}


# ------------------------------------------------------------------ claims


def _claims(plan: Plan) -> Pages:
    found = origins.origins({claim.name: claim.statement for claim in plan.claims})
    explained = _explained()
    made: Pages = {}
    for before, claim, after in in_turn(plan.claims):
        name = page_of_claim(claim)
        if name in made:
            config.refuse("claim", claim.name, "its page has the name of another claim's")
        around = {"before": before, "after": after, "explained": explained.get(claim.name)}
        made |= _claim(plan, name, claim, found.get(claim.name), **around)
    return made


def _explained() -> dict[str, str]:
    """Where the documentation says what could explain that a claim is contradicted, by claim."""
    page = contents.project_file(NEGATIVES) or ""
    addresses: dict[str, str] = {}
    for heading in re.findall(r"^### (.+)$", page, re.MULTILINE):
        address = f"{NEGATIVES.removesuffix('.md')}.html#{documents.slug(heading)}"
        addresses |= dict.fromkeys(heading.partition(":")[0].split(", "), address)
    return addresses


def _claim(plan: Plan, name: str, claim: Claim, origin: origins.Origin | None, **around) -> Pages:
    judged = [plan.contents.label(label) for label in claim.by_label]
    executed = {label.name: plan.notebook_page(label, claim.section) for label in judged}
    return plan.page(
        name,
        "claim",
        title=f"{claim.name}: {claim.statement}",
        at=SCOREBOARD,
        claim=claim,
        first=next(iter(plan.contents.boards)),
        moves=_moved(plan, claim),
        plot=verdicts.interval_plot(claim),
        origin=origin,
        origin_code=documents.code(origin.source) if origin else "",
        order_of_runs=[_order(origin, label, claim.section) for label in judged] if origin else [],
        notebooks={label: page for label, page in executed.items() if page},
        tables={label.name: f"papermill_runs/{label.name}/{report.CLAIMS}" for label in judged},
        section_title=contents.title_of(claim.section),
        **around,
    )


def _order(origin: origins.Origin, label: Label, section: str) -> str:
    """Whether a check, as it stands, is older than the runs that it judges."""
    runs = f"runs behind section {section} at {label.name} scale"
    trained = contents.trained_at(label, section)
    stands = origin.stands
    if not trained or stands is None:
        return f"Whether that was before the {runs} cannot be told here."
    older = {commit: origins.is_ancestor(stands.name, commit) for commit in trained}
    if None in older.values():
        return f"The {runs} were trained at commits that git does not know here."
    count = sum(trained.values())
    before = {commit: n for commit, n in trained.items() if not older[commit]}
    if not before:
        return f"All {count} {runs} were trained at that commit or after it."
    at = ", ".join(f"{n} at {commit}" for commit, n in before.items())
    return (
        f"Of the {count} {runs}, {sum(before.values())} were trained before that commit: {at}. "
        "A line that was only rewritten counts; the commit says what changed."
    )
