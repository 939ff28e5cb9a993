"""Options that commands have in common, each group a parameter of theirs; see `signatures.expand_groups`.

A new option of all of them is a field here, and is used in `requests.py`.
"""

from dataclasses import dataclass

from mfcli.cli import predict_options as option
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.selection import DEFAULT_TIMEOUT_S
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, DEFAULT_MAX_PIXELS


@dataclass(frozen=True, slots=True)
class InputOptions:
    """Which pictures are taken."""

    inputs: option.Inputs = None
    lists: option.FilesFrom = None
    null: option.Null = False
    include: option.Include = None
    exclude: option.Exclude = None
    no_recursive: option.NoRecursive = False
    column: option.Column = None


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How pictures are opened and decoded."""

    no_exif: option.NoExif = False
    formats: option.Formats = None
    max_pixels: option.MaxPixels = DEFAULT_MAX_PIXELS
    decode_timeout: option.DecodeTimeout = DEFAULT_DECODE_TIMEOUT_S
    timeout: option.Timeout = DEFAULT_TIMEOUT_S

    def split_formats(self) -> tuple[str, ...]:
        """Return the names of optional formats."""
        return () if self.formats is None else tuple(self.formats.split(","))


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model."""

    model: option.Model = None
    weights: option.Weights = None


@dataclass(frozen=True, slots=True)
class OverrideOptions:
    """What is used instead of the model's own."""

    labels: option.Labels = None
    mean: option.Mean = None
    std: option.Std = None
    crop_pct: option.CropPct = None
    interpolation: option.Interpolation = None
    input_size: option.InputSize = None


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What becomes of a file of results that is there."""

    overwrite: option.Overwrite = False
    resume: option.Resume = False
    retry_failed: option.RetryFailed = False


@dataclass(frozen=True, slots=True)
class RunningOptions:
    """How the work is done."""

    batch_size: option.BatchSize = "auto"
    workers: option.Workers = None
    threads: option.Threads = None
    engine: option.Engine = EngineName.AUTO
    device: option.Device = "auto"
    precision: option.ArithmeticPrecision = Precision.FP32
