"""Options that commands have in common, each group a parameter of theirs; see `signatures.expand_groups`.

A new option of all of them is a field here, and is used in `requests.py`. Named tuples are made nine times as fast as
dataclasses, which matters for a first answer.
"""

from typing import NamedTuple

from mfcli.cli import predict_options as option
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.selection import DEFAULT_TIMEOUT_S
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, DEFAULT_MAX_PIXELS


class InputOptions(NamedTuple):
    """Which pictures are taken."""

    inputs: option.Inputs = None
    lists: option.FilesFrom = None
    null: option.Null = False
    include: option.Include = None
    exclude: option.Exclude = None
    no_recursive: option.NoRecursive = False
    column: option.Column = None


class DecodingOptions(NamedTuple):
    """How pictures are opened and decoded."""

    no_exif: option.NoExif = False
    formats: option.Formats = None
    max_pixels: option.MaxPixels = DEFAULT_MAX_PIXELS
    decode_timeout: option.DecodeTimeout = DEFAULT_DECODE_TIMEOUT_S
    timeout: option.Timeout = DEFAULT_TIMEOUT_S

    def split_formats(self) -> tuple[str, ...]:
        """Return the names of optional formats."""
        return () if self.formats is None else tuple(self.formats.split(","))


class ModelOptions(NamedTuple):
    """Which model."""

    model: option.Model = None
    weights: option.Weights = None


class OverrideOptions(NamedTuple):
    """What is used instead of the model's own."""

    labels: option.Labels = None
    mean: option.Mean = None
    std: option.Std = None
    crop_pct: option.CropPct = None
    interpolation: option.Interpolation = None
    input_size: option.InputSize = None


class FileOptions(NamedTuple):
    """What happens to an existing file of results."""

    overwrite: option.Overwrite = False
    resume: option.Resume = False
    retry_failed: option.RetryFailed = False


class RunningOptions(NamedTuple):
    """How the work is done."""

    batch_size: option.BatchSize = "auto"
    workers: option.Workers = None
    threads: option.Threads = None
    engine: option.Engine = EngineName.AUTO
    device: option.Device = "auto"
    precision: option.ArithmeticPrecision = Precision.FP32
