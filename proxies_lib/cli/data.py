"""data prepare, data list: corpora and their tokens."""

import functools

from proxies_lib.cli.options import Parser, add_command, add_option, add_quiet
from proxies_lib.cli.stopping import AGAIN


def add(command):
    data = command(
        "data",
        lambda options: data.print_help(),
        "prepare and list datasets",
        """
        data list
        data prepare text --path 'books/*.txt.xz' --name books
        """,
    )
    actions = data.add_subparsers(metavar="ACTION", parser_class=Parser)

    action = functools.partial(add_command, actions)
    prepare = action(
        "prepare",
        _data_prepare,
        "tokenize and pack a source",
        """
        data prepare text --path 'books/*.txt.xz' --name books
        data prepare c4 --path /mnt/c4/en --tokenizer t5.model --shards 8
        """,
    )
    prepare.set_defaults(stopped=f"data is not prepared; {AGAIN}")
    add_option(
        prepare,
        "source",
        help="synthetic, stdlib, text or c4",
        complete=lambda **_: ["synthetic", "stdlib", "text", "c4"],
    )
    prepare.add_argument(
        "--path", nargs="+", help="files or globs (text); a folder or URL prefix of shards (c4)"
    )
    prepare.add_argument("--validation", nargs="+", help="files of held-out documents (text)")
    prepare.add_argument("--tokenizer", help="a SentencePiece model; else one is trained")
    prepare.add_argument(
        "--vocab-size", type=int, help="pieces of a trained vocabulary (default 1024)"
    )
    prepare.add_argument("--shards", type=int, help="use at most so many shards (c4)")
    prepare.add_argument(
        "--name",
        help="letters, digits, '.', '_' and '-' (default: the source); replaces its dataset",
    )
    add_quiet(prepare)
    action(
        "list",
        _data_list,
        "print the prepared datasets, with counts and fingerprints",
        "data list",
    )


def _data_prepare(options):
    from proxies_lib.runs import datasets

    names = ("source", "name", "path", "validation", "tokenizer", "vocab_size", "shards")
    datasets.prepare(**{name: getattr(options, name) for name in names})


def _data_list(options):
    from proxies_lib.runs import datasets

    for line in datasets.describe_all() or ["none is prepared; see proxies data prepare --help"]:
        print(line)
