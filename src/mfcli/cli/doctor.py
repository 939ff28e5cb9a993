"""The command `mf doctor`."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfcli.cli.flags import name_flags
from mfcli.cli.options import InfoFormat
from mfcli.cli.streams import standard_output
from mfcli.errors import CheckError
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.doctor import Finding

SCHEMA = "mf.doctor/1"


def doctor(
    format: Annotated[InfoFormat, typer.Option("--format", help="How it is written.")] = InfoFormat.TABLE,
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
                stream.write(_format_finding(finding))
                stream.flush()
            findings.append(finding)
        works = task.is_working(findings)
        if format is InfoFormat.JSON:
            stream.write(format_document({"schema": SCHEMA, "works": works, "findings": [asdict(f) for f in findings]}))
    if not works:
        raise CheckError("the bundled model or the default engine does not work here", "see their lines above")


def _format_finding(finding: "Finding") -> str:
    status = "" if finding.status == "fact" else finding.status
    line = f"  {finding.name:<20}{status:<8}{_format_value(finding.value)}".rstrip() + "\n"
    return line + (f"  {'':<20}hint: {finding.hint}\n" if finding.hint else "")


def _format_value(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
        case list():
            return " ".join(map(str, value))
    return str(value)
