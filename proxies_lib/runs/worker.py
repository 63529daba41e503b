"""A worker process: `python -m proxies_lib.runs.worker STORE CORE`, started by `processes`.

A line in is a run's configuration, as JSON. A line out is the reply when that run is stored, or is
not to be:

    {"refused": "", "failed": "", "notes": ["compilation cache: …"]}

`refused` is the whole line to say to the user; `failed` is an error whose traceback is in the log,
which is this process's stderr; `notes` are lines for the user.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from proxies_lib import config, settings
from proxies_lib.config import Run, UserError
from proxies_lib.runs import datasets
from proxies_lib.runs.engines import GO_ON, what_failed
from proxies_lib.runs.provenance import commit, record

if TYPE_CHECKING:
    from proxies_lib.train import Trainer


def work(folder: str, core: int):
    """The loop of a worker process. It ends when its parent does, even in the middle of a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear
    settings.use_one_thread()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not reach the protocol
    _stay_on(core)
    commit()  # of the code that is loaded: another one may be checked out while a run trains
    jobs: queue.Queue = queue.Queue()

    def listen():
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # the end of the input is the end of the parent

    threading.Thread(target=listen, daemon=True).start()
    trainers: dict[tuple, Trainer] = {}
    notes: list[str] = []
    while True:
        reply = {"refused": "", "failed": ""}
        try:
            run = config.from_flat(json.loads(jobs.get()))
            _train(run, folder, trainers, notes.append)
        except UserError as error:
            reply["refused"] = str(error)
        except OSError as error:
            reply["refused"] = f"worker: {what_failed(error)}; {GO_ON}"
        except Exception as error:
            traceback.print_exc()
            reply["failed"] = what_failed(error)
        print(json.dumps(reply | {"notes": notes}), file=replies, flush=True)
        notes.clear()


def _stay_on(core: int):
    """Keep this process on one of the cores that it may use, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)]})


def _train(run: Run, folder: str, trainers: dict, say):
    """Train `run` and store it. `trainers` holds what is compiled already."""
    # JAX is imported only now, when the settings of threads are made.
    from proxies_lib.layout import layout_alone
    from proxies_lib.runs import executables
    from proxies_lib.train import Trainer

    executables.use_cache(say)
    dataset = datasets.open_dataset(run.data, run.model.vocab_size)
    compiled = (*run.program, layout_alone(run))
    if compiled not in trainers:
        trainers[compiled] = Trainer(*compiled)
    (result,) = trainers[compiled].train([run], dataset)
    record(folder, run, dataset, result)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
