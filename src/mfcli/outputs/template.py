"""Lines made from a template: Python's format strings, with the names of a result's values and nothing else."""

import re
import string
from collections.abc import Callable
from typing import Any, TextIO

from mfcli.errors import UsageError, escape_control_characters
from mfcli.results import PictureResult
from mfcli.runs import RunInfo, Summary

FIELDS: dict[str, tuple[type, Callable[[PictureResult], Any]]] = {
    "input": (str, lambda result: result.input),
    "member": (str, lambda result: result.member),
    "status": (str, lambda result: result.status),
    "label": (str, lambda result: result.label),
    "wnid": (str, lambda result: result.top and result.top.wnid),
    "class_index": (int, lambda result: result.top and result.top.class_index),
    "prob": (float, lambda result: result.prob),
    "concept": (str, lambda result: result.concept and result.concept.label),
    "concept_wnid": (str, lambda result: result.concept and result.concept.wnid),
    "concept_prob": (float, lambda result: result.concept and result.concept.prob),
    "abstained": (str, lambda result: result.abstained and result.abstained.value),
    "width": (int, lambda result: result.width),
    "height": (int, lambda result: result.height),
    "model": (str, lambda result: result.run.model),
    "error_code": (str, lambda result: result.error and result.error.code.value),
    "error_message": (str, lambda result: result.error and result.error.message),
}
"""What a template can name: its type, and its value; None where a result has none."""

_ESCAPE = re.compile(r"\\[tnr\\]")
_ESCAPED = {r"\t": "\t", r"\n": "\n", r"\r": "\r", r"\\": "\\"}
_TOO_WIDE = re.compile(r"\d{4}")


class Template:
    r"""A parsed template such as `{input}\t{label}\t{prob:.2f}`; with the escapes `\t`, `\n`, `\r` and `\\`."""

    def __init__(self, text: str) -> None:
        """Parse and check a template.

        Raises:
            UsageError: it is no format string, names an unknown field, or a format that does not suit its field.
        """
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UsageError(
                f"template={text!r} is not a format string: {error}", "{{ and }} stand for braces"
            ) from error
        self._parts = [
            (
                _ESCAPE.sub(lambda match: _ESCAPED[match[0]], literal),
                None if name is None else _check_field(name, spec or "", conversion),
                spec or "",
            )
            for literal, name, spec, conversion in parts
        ]
        if not any(name for _, name, _ in self._parts):
            raise UsageError(f"template={text!r} names no field", "template='{input}\\t{label}\\t{prob:.2f}'")

    @property
    def shows_errors(self) -> bool:
        """Whether the line of a picture that failed says why."""
        return any(name in ("error_code", "error_message") for _, name, _ in self._parts)

    def format(self, result: PictureResult) -> str:
        """Return the line of a result, without its end; values that it does not have are empty."""
        return "".join(
            literal + (_format_value(FIELDS[name][1](result), spec) if name else "")
            for literal, name, spec in self._parts
        )


class TemplateWriter:
    """One line per result, made by a template."""

    def __init__(self, stream: TextIO, template: Template) -> None:
        self._stream = stream
        self._template = template

    def begin(self, run: RunInfo) -> None:
        """Write nothing."""

    def write(self, result: PictureResult) -> None:
        """Write one line."""
        self._stream.write(self._template.format(result) + "\n")

    def end(self, summary: Summary) -> None:
        """Write nothing."""


def _check_field(name: str, spec: str, conversion: str | None) -> str:
    if name not in FIELDS:
        raise UsageError(f"a template has no field {{{name}}}", f"one of {', '.join(FIELDS)}")
    kind, _ = FIELDS[name]
    try:
        if conversion or "{" in spec or _TOO_WIDE.search(spec):
            raise ValueError("only simple formats such as :.2f are understood")
        format(kind(), spec)
    except (ValueError, OverflowError, MemoryError) as error:
        given = f"{{{name}{'!' + conversion if conversion else ''}:{spec}}}"
        raise UsageError(
            f"{given} cannot be formatted: {error}", "{prob:.2f}, {label:>30}, {class_index:04d}"
        ) from error
    return name


def _format_value(value: Any, spec: str) -> str:
    if isinstance(value, str):  # so that a name can neither break a line nor control a terminal
        return format(escape_control_characters(value), spec)
    if value is not None:
        return format(value, spec)
    try:
        return format("", spec)
    except ValueError:  # a format for numbers
        return ""
