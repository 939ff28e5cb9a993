"""python -m mfcli, the same as mf."""

from mfcli.cli import run

if __name__ == "__main__":
    run()
