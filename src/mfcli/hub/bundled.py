"""The files of the model that ships with the package: where they are, in an installation or in a checkout."""

from pathlib import Path

from mfcli.errors import ModelError

REINSTALL = "install it again, in the checkout: pip install --force-reinstall --no-deps ."
"""What to do about a damaged file of the package; all other files are made or fetched again."""
_PACKAGE_DIR = Path(__file__).parent.parent
_BUNDLED_DIRS = (_PACKAGE_DIR / "bundled", _PACKAGE_DIR.parent.parent / "weights")


def is_bundled(path: Path) -> bool:
    """Return whether a file ships with the package."""
    return path.parent in _BUNDLED_DIRS


def bundled_file(name: str) -> Path:
    """Return the path of a file that ships with the package.

    Raises:
        ModelError: the installation lacks it.
    """
    for folder in _BUNDLED_DIRS:
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"the bundled file {name} is missing from this installation", REINSTALL)
