"""data prepare, data list: corpora and their tokens."""

from proxies_lib.cli.options import Parser


def add(command):
    data = command("data", None, "prepare and list datasets")
    actions = data.add_subparsers(required=True, metavar="ACTION", parser_class=Parser)
    prepare = actions.add_parser("prepare", help="tokenize and pack a source")
    prepare.set_defaults(call=_data_prepare)
    prepare.add_argument("source", help="synthetic, stdlib, text or c4")
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
    listing = actions.add_parser("list", help="prepared datasets, with counts and fingerprints")
    listing.set_defaults(call=_data_list)


def _data_prepare(options):
    from proxies_lib.runs import datasets

    names = ("source", "name", "path", "validation", "tokenizer", "vocab_size", "shards")
    datasets.prepare(**{name: getattr(options, name) for name in names})


def _data_list(options):
    from proxies_lib.runs import datasets

    for line in datasets.describe_all():
        print(line)
