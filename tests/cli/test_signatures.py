"""Groups of options."""

from inspect import signature
from typing import NamedTuple

from mfcli.cli.signatures import expand_groups


class Size(NamedTuple):
    width: int
    height: int = 3


class Depth(Size):
    height: float  # type: ignore[assignment]


def measure(*, name: str = "", size: Size, unit: str = "px") -> tuple[str, Size, str]:
    """Measure."""
    return name, size, unit


def dive(*, size: Depth) -> None: ...


def test_the_fields_of_a_group_are_parameters() -> None:
    expanded = expand_groups(measure)
    assert str(signature(expanded)) == "(*, name: str = '', width: int, height: int = 3, unit: str = 'px')"
    assert signature(expand_groups(dive)).parameters["height"].annotation is float
    assert expanded.__doc__ == "Measure."
    assert expanded(name="a", width=2, height=3, unit="cm") == ("a", Size(2), "cm")
