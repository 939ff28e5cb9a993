"""Groups of options: a parameter of a command that is a named tuple stands for an option of each of its fields.

Typer reads options from a function's signature alone, so the commands that share options would repeat all of them.
"""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, get_annotations, signature
from typing import Any


def expand_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the fields of its groups as parameters, in their place; all are given by name."""
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if hasattr(kind := parameter.annotation, "_fields"):
            groups[parameter.name] = kind
            parameters += _list_parameters(kind)
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**values: Any) -> Any:
        for name, kind in groups.items():
            values[name] = kind(**{field: values.pop(field) for field in kind._fields})
        return command(**values)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run


def _list_parameters(group: Any) -> list[Parameter]:
    types = {name: kind for base in reversed(group.__mro__) for name, kind in get_annotations(base).items()}
    return [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=group._field_defaults.get(name, Parameter.empty),
            annotation=types[name],
        )
        for name in group._fields
    ]
