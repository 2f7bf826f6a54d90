"""`python -m flows COMMAND`: the same as the command `contrapposto`."""

import sys

from flows.cli import main

if __name__ == "__main__":
    sys.exit(main())
