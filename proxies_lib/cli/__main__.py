"""`python -m proxies_lib.cli`: the same as `proxies`."""

import sys

from proxies_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
