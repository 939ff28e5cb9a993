"""Messages of the library in the words of the command line."""

import pytest
import typer

from mfcli.cli import make_app
from mfcli.cli.flags import FLAGS, SWITCHES, name_flags


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("top_k=0 is not between 1 and 200", "--top-k 0 is not between 1 and 200"),
        ("batch_size=1 workers=1 threads=1", "--batch-size 1 --workers 1 --threads 1"),
        ("max_failures='x' is neither", "--max-failures 'x' is neither"),
        ("origin=FILE, or force=True; engine=torch", "--from FILE, or --force; --engine torch"),
        ("exif=True instead of exif=False", "no --no-exif instead of --no-exif"),
        ("name a folder: MF_CACHE_DIR=DIR", "name a folder: MF_CACHE_DIR=DIR"),
        ("no such file: x/top_k=3.jpg", "no such file: x/top_k=3.jpg"),
        ("https://example.org/?model=a&top_k=2", "https://example.org/?model=a&top_k=2"),
        ("other=3", "other=3"),
    ],
)
def test_parameters_become_flags(message: str, shown: str) -> None:
    assert name_flags(message) == shown


def test_what_was_typed_is_not_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mf", "predict", "--weights", "model=best.pth"])
    assert name_flags("model=best.pth contains no state dict") == "model=best.pth contains no state dict"
    assert name_flags("model=other") == "--model other"


def test_every_flag_is_an_option() -> None:
    commands = typer.main.get_command(make_app()).commands.values()  # type: ignore[attr-defined]
    options = {name for command in commands for parameter in command.params for name in parameter.opts}
    named = {*FLAGS.values(), *(switch.removeprefix("no ") for switch in SWITCHES.values())}
    assert named <= options
