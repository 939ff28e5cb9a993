"""The files of the model that ships with the package."""

from pathlib import Path

from mfcli.errors import ModelError

REINSTALL = "install it again, in the checkout: pip install --force-reinstall --no-deps ."
"""What to do about what ships with the package; everything else is made or fetched again."""
_PACKAGE_DIR = Path(__file__).parent.parent
_BUNDLED_DIRS = (_PACKAGE_DIR / "bundled", _PACKAGE_DIR.parent.parent / "weights")


def is_bundled(path: Path) -> bool:
    """Whether a file is one that ships with the package."""
    return path.parent in _BUNDLED_DIRS


def bundled_file(name: str) -> Path:
    """Return the path of a file that ships with the package: in the package, or in a checkout's weights/ folder.

    Raises:
        ModelError: it is in neither place, so the installation is incomplete.
    """
    for folder in _BUNDLED_DIRS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"the bundled file {name} is missing from this installation", REINSTALL)
