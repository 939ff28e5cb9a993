"""Groups of options: a parameter of a command that is a dataclass stands for an option of each of its fields.

Typer reads options from a function's signature alone, so the commands that share options would repeat all of them.
"""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any


def expand_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command with the fields of its groups as parameters, in their place; all are given by name."""
    groups: dict[str, type] = {}
    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        if is_dataclass(kind := parameter.annotation) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += map(_make_parameter, fields(kind))
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**values: Any) -> Any:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        return command(**values)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return run


def _make_parameter(field: Field[Any]) -> Parameter:
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
