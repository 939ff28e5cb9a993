"""python -m mfcli, the same as mf."""

import sys

from mfcli.cli import main

if __name__ == "__main__":
    sys.exit(main())
