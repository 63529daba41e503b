"""convert, lab: hand runs to other tools; JupyterLab for this project."""

import os

from proxies_lib.cli.options import add_option, add_protocol, new_folder, overrides_of
from proxies_lib.config import refuse
from proxies_lib.science import protocol


def add(command):
    """convert, lab: other tools."""
    convert = command(
        "convert",
        _convert,
        "hand runs to other tools: as csv, parquet, TensorBoard events, an offline W&B project, "
        "or the parameters of some as safetensors",
        """
        convert csv 01 --into runs-as-csv
        convert tensorboard 01 --into events --curves loss max_attention_logit/
        convert safetensors 01 --into weights --runs 53d53ac60a90
        """,
    )
    add_option(
        convert,
        "format",
        metavar="FORMAT",
        help="csv, parquet, tensorboard, wandb or safetensors",
        complete=_formats,
    )
    add_protocol(convert)
    convert.add_argument("--into", required=True, metavar="FOLDER", help="a new or empty folder")
    convert.add_argument(
        "--runs",
        nargs="+",
        metavar="KEY",
        help="only these, by their keys in a figure's csv; safetensors needs it",
    )
    convert.add_argument(
        "--curves",
        nargs="+",
        metavar="NAME",
        help="only curves whose names begin so, as loss or max_attention_logit/ (default: all)",
    )
    lab = command(
        "lab",
        _lab,
        "start JupyterLab, where a double click on notebooks/*.py opens a notebook",
        """
        lab
        lab -- --no-browser --port 8890
        """,
    )
    lab.add_argument(
        "arguments",
        nargs="*",
        metavar="ARGUMENT",
        help="of `jupyter lab`; options of its own stand behind --, as in `lab -- --no-browser`",
    )


def _formats(**_):
    """What Tab offers; the module of formats is imported only then."""
    from proxies_lib.science import convert

    return convert.FORMATS


def _convert(options):
    """Of stored and committed runs; only the parameters of some are made, by training them."""
    from proxies_lib.science import convert, notebooks

    if options.format not in convert.FORMATS:
        refuse("format", options.format, f"must be one of {', '.join(convert.FORMATS)}")
    if options.store is not None:
        os.environ["PROXIES_STORE"] = new_folder("store", options.store)
    into, overrides = new_folder("into", options.into), overrides_of(options)
    study = protocol.study(options.scale, overrides)
    chosen = convert.wanted(notebooks.choose(options.sections, study), study, overrides)
    convert.convert(options.format, chosen, into, options.runs, options.curves)


def _lab(options):
    from proxies_lib.science import lab

    lab.start(options.arguments)
