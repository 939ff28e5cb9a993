"""How results are written: the options about the format, and the suffix of the file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

from mfcli.errors import UsageError
from mfcli.outputs.writer import FeatureFormat, FormatName, LabelType, Writer

if TYPE_CHECKING:
    from mfcli.outputs.pictures import PictureRenderer
    from mfcli.outputs.template import Template

_OTHER_SUFFIXES = {"ndjson": "jsonl", "txt": "table"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How results are written.

    Attributes:
        format: one of the formats, or a template for each line.
        header: whether CSV and TSV begin with the names of their columns.
        csv_safe: whether their cells that spreadsheets would compute begin with an apostrophe.
        label_type: what a table shows of a class.
    """

    format: "FormatName | Template"
    header: bool = True
    csv_safe: bool = False
    label_type: LabelType = LabelType.NAME

    @classmethod
    def parse(
        cls,
        path: Path | None,
        format: FormatName | None,
        template: str | None,
        *,
        header: bool,
        csv_safe: bool = False,
        label_type: LabelType | None,
    ) -> "Layout":
        """Read the options.

        Args:
            path: the file, whose name may end with `.gz`; None for standard output.
            format: None for the one that the file's suffix names, or a table.
            template: --template, which takes the place of a format.
            header: no --no-header.
            csv_safe: --csv-safe.
            label_type: --label-type, which is about tables.

        Raises:
            UsageError: they contradict one another, or the suffix names no format.
            EngineError: a package that the format needs is not installed.
        """
        if template is not None:
            from mfcli.outputs.template import Template

            if format is not None:
                raise UsageError("--template and --format exclude each other", "give one of them")
            chosen: FormatName | Template = Template(template)
        elif format is not None:
            chosen = format
        else:
            chosen = FormatName.TABLE if path is None else _format_of_suffix(path)
        if chosen is FormatName.PARQUET:
            _check_parquet(path)
        for flag in ["--no-header"] * (not header) + ["--csv-safe"] * csv_safe:
            if chosen not in (FormatName.CSV, FormatName.TSV):
                raise UsageError(f"{flag} is about csv and tsv", "--format csv")
        if label_type is not None and chosen is not FormatName.TABLE:
            raise UsageError("--label-type is about tables; csv, json and the others have all three", "leave it out")
        return cls(chosen, header, csv_safe, label_type or LabelType.NAME)

    @property
    def shows_errors(self) -> bool:
        """Whether what is written of a picture that failed says why."""
        return isinstance(self.format, FormatName) or self.format.shows_errors

    def open_writer(self, stream: TextIO, *, compact: bool, renderer: "PictureRenderer | None" = None) -> Writer:
        """Return the writer on a stream; `compact` and `renderer` are those of `outputs.open_writer`."""
        from mfcli.outputs import open_writer

        return open_writer(
            self.format,
            stream,
            compact=compact,
            header=self.header,
            csv_safe=self.csv_safe,
            label_type=self.label_type,
            renderer=renderer,
        )


@dataclass(frozen=True, slots=True)
class FeatureLayout:
    """How features are written."""

    format: FeatureFormat
    shows_errors: ClassVar[bool] = True

    @classmethod
    def parse(cls, path: Path) -> "FeatureLayout":
        """Read the suffix of a file.

        Raises:
            UsageError: it is neither .npz nor .parquet.
            EngineError: pyarrow, which Parquet needs, is not installed.
        """
        suffix = path.suffix.lower().removeprefix(".")
        if suffix not in list(FeatureFormat):
            raise UsageError(f"the suffix of {path} is neither .npz nor .parquet", "-o features.npz")
        if suffix == FeatureFormat.PARQUET:
            _check_parquet(path)
        return cls(FeatureFormat(suffix))

    def open_writer(self, stream: TextIO, *, compact: bool, renderer: "PictureRenderer | None" = None) -> Writer:  # noqa: ARG002 - as Layout's
        """Return the writer on a stream, whose bytes are used."""
        from mfcli.outputs.features import open_feature_writer

        return open_feature_writer(self.format, stream.buffer)


def _check_parquet(path: Path | None) -> None:
    from mfcli.outputs.files import is_compressed
    from mfcli.outputs.parquet import import_parquet

    if path is None:
        raise UsageError("parquet is for files, which readers begin at the end", "-o results.parquet")
    if is_compressed(path):
        raise UsageError("parquet is compressed inside, and nothing reads it in gzip", f"-o {path.with_suffix('')}")
    import_parquet()


def _format_of_suffix(path: Path) -> FormatName:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix.removeprefix(".")
    suffix = _OTHER_SUFFIXES.get(suffix, suffix)
    if suffix not in list(FormatName):
        formats = ", ".join(name for name in FormatName if name is not FormatName.TABLE)  # mf find has no tables
        raise UsageError(
            f"the suffix of {path} names no format", f"-o {path.with_suffix('.csv')}, or --format, one of {formats}"
        )
    return FormatName(suffix)
