"""Groups of options."""

from dataclasses import dataclass
from inspect import signature

from mfcli.cli.signatures import expand_groups


@dataclass(frozen=True)
class Size:
    width: int
    height: int = 3


def measure(*, name: str = "", size: Size, unit: str = "px") -> tuple[str, Size, str]:
    """Measure."""
    return name, size, unit


def test_the_fields_of_a_group_are_parameters() -> None:
    expanded = expand_groups(measure)
    assert str(signature(expanded)) == "(*, name: str = '', width: int, height: int = 3, unit: str = 'px')"
    assert expanded.__doc__ == "Measure."
    assert expanded(name="a", width=2, height=3, unit="cm") == ("a", Size(2), "cm")
