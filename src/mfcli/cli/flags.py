"""The library's parameters under the names that the command line has for them.

Errors and notes of the library speak of its parameters (`top_k=0`); a person who typed a command reads `--top-k 0`.
"""

import re
import sys
from dataclasses import replace

from mfcli.results import PictureResult

FLAGS = {
    "abstain": "--abstain",
    "batch_size": "--batch-size",
    "class_map": "--class-map",
    "column": "--column",
    "confidence": "--confidence",
    "crop_pct": "--crop-pct",
    "decode": "--decode",
    "decode_timeout_s": "--decode-timeout",
    "device": "--device",
    "engine": "--engine",
    "epochs": "--epochs",
    "exclude": "--exclude",
    "expect_sha256": "--expect-sha256",
    "files_from": "--files-from",
    "format": "--format",
    "formats": "--formats",
    "ground_truth": "--ground-truth",
    "include": "--include",
    "input_size": "--input-size",
    "interpolation": "--interpolation",
    "keep": "--keep",
    "labels": "--labels",
    "max_error": "--max-error",
    "max_failures": "--max-failures",
    "min_prob": "--min",
    "max_pixels": "--max-pixels",
    "limit": "--limit",
    "lr": "--lr",
    "mean": "--mean",
    "model": "--model",
    "origin": "--from",
    "optimizer": "--optimizer",
    "output": "--output",
    "patience": "--patience",
    "plan": "--plan",
    "precision": "--precision",
    "ray": "--ray",
    "ray_timeout_s": "--ray-timeout",
    "predictions": "--predictions",
    "rounds": "--rounds",
    "seconds": "--seconds",
    "shard": "--shard",
    "shards": "--shards",
    "std": "--std",
    "template": "--template",
    "threads": "--threads",
    "timeout_s": "--timeout",
    "top_k": "--top-k",
    "weights": "--weights",
    "workers": "--workers",
}
"""Options with a value, by parameter."""

SWITCHES = {
    ("exif", "False"): "--no-exif",
    ("exif", "True"): "no --no-exif",
    ("finetune", "False"): "no --finetune",
    ("finetune", "True"): "--finetune",
    ("force", "True"): "--force",
    ("force", "False"): "no --force",
    ("nul", "True"): "--null",
    ("offline", "True"): "--offline",
    ("overwrite", "True"): "--overwrite",
    ("pin", "True"): "--pin",
    ("random_weights", "True"): "--random-weights",
    ("recursive", "False"): "--no-recursive",
    ("resume", "True"): "--resume",
    ("retry_failed", "True"): "--retry-failed",
}
"""Options without a value, by parameter and value."""

_ASSIGNMENT = re.compile(r"(?<![\w./&?-])([a-z][a-z0-9_]*)=('[^']*'|\"[^\"]*\"|[^\s,;:()]+)")


def name_flags(text: str) -> str:
    """Return a message of the library with `parameter=value` written as the command line's option and value."""
    return _ASSIGNMENT.sub(_name_flag, text)


def name_flags_of_error(result: PictureResult) -> PictureResult:
    """Return a result whose error speaks of options, not of parameters."""
    if result.error is None:
        return result
    return replace(result, error=replace(result.error, message=name_flags(result.error.message)))


def _name_flag(match: re.Match[str]) -> str:
    parameter, value = match.groups()
    if any(match[0] in argument for argument in sys.argv):  # the name of a file
        return match[0]
    if switch := SWITCHES.get((parameter, value)):
        return switch
    return f"{FLAGS[parameter]} {value}" if parameter in FLAGS else match[0]
