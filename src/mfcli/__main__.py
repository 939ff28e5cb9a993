"""The program mf, also as python -m mfcli."""

import signal
from typing import NoReturn


def run() -> NoReturn:
    """Run the command line; an interrupt during its imports ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mfcli import cli

    cli.run()


if __name__ == "__main__":
    run()
