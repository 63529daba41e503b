"""Tab completion, by argcomplete: the words that Tab offers, and the shell code that asks for them.

A word is offered from names alone: no table is read, so that Tab answers at once.
"""

import pathlib

from proxies_lib import config, paths
from proxies_lib.science import protocol

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")


def offer(parser):
    """Answer the shell, and end, where it is the shell that asks."""
    import argcomplete

    argcomplete.autocomplete(parser)


def scales(**_) -> list[str]:
    return list(protocol.scales())


def sections(**_) -> list[str]:
    """Numbers of the notebooks."""
    found = (paths.root() / "notebooks").glob("[0-9][0-9]_*.py")
    return sorted(path.name[:2] for path in found)


def labels(**_) -> list[str]:
    from proxies_lib.science import outputs

    return outputs.labels()


def figures(**_) -> list[str]:
    from proxies_lib.science.figures import FIGURES

    return list(FIGURES)


def overrides(**_) -> list[str]:
    """What `--set` takes, with its equals sign."""
    names = [*protocol.LISTS, *(name for name in config.FIELDS if name not in protocol.SWEPT)]
    return [f"{name}=" for name in names]


def columns(**_) -> list[str]:
    """Fields of a run, its results and its provenance, as columns of a table."""
    results = "final_loss init_loss diverged diverged_step train_seconds"
    others = f"key n_params {results} fingerprint device commit python jax jaxlib flax optax numpy"
    return [*config.FIELDS, *others.split()]


def conditions(**_) -> list[str]:
    """What `--where` takes, with its equals sign."""
    return [f"{name}=" for name in columns()]


def notebooks(**_) -> list[str]:
    """What `score` takes: sections, and notebooks of this folder."""
    here = pathlib.Path()
    return [*sections(), *sorted(str(path) for path in here.glob("*.ipynb"))]


def add(command):
    added = command(
        "completion",
        _completion,
        "print the code that switches on tab completion in a shell",
        """
        completion bash                    # of bash; switched on by: eval "$(proxies completion)"
        completion fish > ~/.config/fish/completions/proxies.fish
        """,
    )
    added.add_argument(
        "shell", nargs="?", default="bash", choices=SHELLS, help=f"{', '.join(SHELLS)}"
    )


def _completion(options):
    import argcomplete

    print(argcomplete.shellcode(["proxies"], shell=options.shell))
