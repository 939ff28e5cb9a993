"""The command `mf labels`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfcli.cli.options import Format, complete_model
from mfcli.cli.streams import standard_output
from mfcli.errors import UsageError, escape_control_characters
from mfcli.models.registry import default_variant, find_variant
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.tasks.labels import ListedClass


def labels(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN", help="A concept, a word of a name, a WordNet id, or a glob.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="A name from mf list-models.",
            show_default="MF_MODEL, else bundled",
            autocompletion=complete_model,
        ),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="Show the classes below their concepts, as text.")] = False,
    format: Format = RecordFormat.TABLE,
) -> None:
    """List the classes of a model, and the concepts over them that mf predict can name, the narrowest first.

    A concept as PATTERN lists all classes below it.
    """
    from mfcli.outputs.records import write_records
    from mfcli.tasks import labels as task

    if tree and format is not RecordFormat.TABLE:
        raise UsageError(f"--tree is text, not {format}", "leave out --tree, or --format")
    settings = Settings.from_environ()
    variant = default_variant(settings) if model is None else find_variant(model)
    classes = task.list_classes(variant, pattern, settings)
    with standard_output() as stream:
        if tree:
            for branch in task.make_tree(classes):
                size = "" if branch.classes is None else f" ({branch.classes})"
                wnid = "" if branch.label.wnid is None else f"  {branch.label.wnid}"
                stream.write(f"{'  ' * branch.depth}{escape_control_characters(branch.label.name)}{size}{wnid}\n")
            return
        records = [_make_record(listed, format) for listed in classes]
        write_records(format, stream, records, optional=("class_index", "concepts"))


def _make_record(listed: "ListedClass", format: RecordFormat) -> dict[str, Any]:
    from mfcli.models.concepts import shorten

    names = [concept.name for concept in listed.concepts]
    return {
        "class_index": listed.class_index,
        "wnid": listed.label.wnid,
        "label": shorten(listed.label.name) if format is RecordFormat.TABLE else listed.label.name,
        "concepts": names if format in (RecordFormat.JSON, RecordFormat.JSONL) else ", ".join(names),
    }
