"""Entry of a worker process: `python -m proxies_lib.worker STORE CORE` (see `sweep`)."""

import sys

from proxies_lib.sweep import work

if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
