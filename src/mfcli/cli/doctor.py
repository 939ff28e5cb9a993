"""The command `mf doctor`."""

import shutil
import textwrap
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from mfcli.cli.flags import name_flags
from mfcli.cli.options import InfoFormat, OneFormat
from mfcli.cli.streams import standard_output
from mfcli.errors import CheckError
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.doctor import Finding

SCHEMA = "mf.doctor/1"
_INDENT = " " * 22
_MIN_WIDTH = 40
_NO_BREAK = "\xa0"


def doctor(
    format: OneFormat = InfoFormat.TABLE,
) -> None:
    """Find out what is installed and what really works here.

    Every engine classifies a synthetic picture with the bundled model, and its logits are compared with the default
    engine's. Nothing is downloaded, no connection is opened. Exit code 9: the default engine, or the bundled
    model, does not work.
    """
    from mfcli.outputs.json import format_document
    from mfcli.tasks import doctor as task

    findings: list[Finding] = []
    with standard_output() as stream:
        for finding in task.doctor(Settings.from_environ()):
            finding = replace(finding, hint=finding.hint and name_flags(finding.hint))
            if format is InfoFormat.TABLE:
                if not findings or findings[-1].group is not finding.group:
                    stream.write(f"{finding.group}\n")
                stream.write(_format_finding(finding, shutil.get_terminal_size().columns if stream.isatty() else None))
                stream.flush()
            findings.append(finding)
        works = task.is_working(findings)
        if format is InfoFormat.JSON:
            stream.write(format_document({"schema": SCHEMA, "works": works, "findings": [asdict(f) for f in findings]}))
    if not works:
        raise CheckError("the bundled model or the default engine does not work here", "see their lines above")


def _format_finding(finding: "Finding", width: int | None) -> str:
    """Return the lines of a finding, wrapped between words to the width of a terminal."""
    status = "" if finding.status == "fact" else finding.status
    lines = [f"  {finding.name:<20}{status:<8}{_format_value(finding.value)}".rstrip()]
    if finding.hint:
        lines.append(f"{_INDENT}hint: {finding.hint}")
    if width is not None:
        lines = [part for line in lines for part in _wrap(line, max(width, _MIN_WIDTH))]
    return "".join(f"{line}\n" for line in lines).replace(_NO_BREAK, " ")


def _wrap(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent=_INDENT, break_on_hyphens=False)


def _format_value(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key}{_NO_BREAK}{item}" for key, item in value.items() if item is not None)
        case list():
            return " ".join(map(str, value))
    return str(value)
