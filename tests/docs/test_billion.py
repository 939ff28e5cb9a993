"""The page on a billion pictures: its computation prints what it says."""

import contextlib
import io

from conftest import CHECKOUT
from documents import fenced

PAGE = (CHECKOUT / "docs" / "billion.md").read_text()


def test_the_computation() -> None:
    (code,), (output,) = fenced(PAGE, "python"), fenced(PAGE, "text")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    assert printed.getvalue() == output
