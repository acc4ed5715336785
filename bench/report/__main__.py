"""`python -m bench.report RESULTS`: the `report` command under its own name."""

import sys

from bench.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
