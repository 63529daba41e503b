"""report: the results as a static site."""

from proxies_lib.cli import completion
from proxies_lib.cli.options import add_option, add_published, add_quiet, new_folder


def add(command):
    report = command(
        "report",
        _report,
        "write a static site of verdicts, figures, notebooks and documentation; trains nothing",
        """
        report                                   # into site/; open site/index.html
        report --published --out ~/proxies-site
        report --scale laptop --scale laptop-softcap    # what moves from the first to the second
        """,
    )
    report.add_argument("--out", metavar="FOLDER", help="where to (default: site)")
    add_option(
        report,
        "--scale",
        action="append",
        metavar="LABEL",
        help="a scale or a label; the first is what others are compared with; may be repeated "
        "(default: laptop, night and long, those that are there)",
        complete=completion.labels,
    )
    add_published(report)
    add_quiet(report)


def _report(options):
    from proxies_lib.site import build

    out = None if options.out is None else new_folder("out", options.out)
    build.main(out, options.scale, options.published)
