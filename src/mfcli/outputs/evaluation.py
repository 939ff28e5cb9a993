"""The figures of `mf evaluate` as records: those of a table are for people, with few digits and short names."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHARES = {
    "top1": "top-1",
    "top5": "top-5",
    "strict_top1": "top-1, failed ones wrong",
    "strict_top5": "top-5, failed ones wrong",
    "real_top1": "top-1, ReaL",
    "real_top5": "top-5, ReaL",
    "published_top1": "top-1, published",
    "published_difference": "difference",
    "macro_recall": "macro recall",
    "coverage": "pictures of known classes",
    "concept_named": "a concept is named",
    "concept_holds": "which the picture shows",
    "abstained": "abstained",
    "kept_top1": "top-1 of the others",
}
_NUMBERS = {
    "log_loss": "log loss",
    "brier": "Brier score",
    "calibration_error": "calibration error",
    "aurc": "area under risk-coverage",
}
_SHOWN_CONFUSIONS = 5


def flatten(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures that are single values; intervals are two."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, tuple):
            flat |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        elif isinstance(value, dict):
            flat |= {f"{name}_{key}": item for key, item in value.items()}
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def list_figures(figures: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the rows of the table; what says nothing new is left out."""
    counts = {"model": figures["model"], "classes": figures.get("classes"), "pictures": figures["pictures"]}
    rows = [{"figure": name, "value": str(value), "interval_95": ""} for name, value in counts.items()]
    if figures["failed"]:
        rows.append({"figure": "failed", "value": str(figures["failed"]), "interval_95": ""})
    for name, words in _SHARES.items():
        value, interval = figures.get(name), figures.get(f"{name}_interval")
        is_needless = (name.startswith("strict_") and not figures["failed"]) or (name == "coverage" and value == 1)
        if value is not None and not is_needless:
            low_high = "" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"
            shown = f"{100 * value:+.2f} points" if name == "published_difference" else f"{value:.2%}"
            rows.append({"figure": words, "value": shown, "interval_95": low_high})
    for coverage, risk in figures.get("risk_at_coverage", {}).items():
        rows.append({"figure": f"wrong among the surest {coverage}", "value": f"{risk:.2%}", "interval_95": ""})
    for name, words in _NUMBERS.items():
        if (value := figures.get(name)) is not None:
            rows.append({"figure": words, "value": f"{value:.4f}", "interval_95": ""})
    if figures.get("images_per_s"):
        rows.append({"figure": "pictures a second", "value": f"{figures['images_per_s']:.1f}", "interval_95": ""})
    return rows


def list_classes(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row of the table for each class."""
    shares = ("precision", "recall", "f1")
    return [
        {"class": _shorten(row["name"]), "pictures": row["count"]}
        | {share: "" if row[share] is None else f"{row[share]:.1%}" for share in shares}
        for row in classes
    ]


def list_confusions(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the table for the classes that are confused most often."""
    return [
        {"confused": _shorten(pair["truth"]), "with": _shorten(pair["predicted"]), "pictures": pair["count"]}
        for pair in figures.get("confusions", [])[:_SHOWN_CONFUSIONS]
    ]


def _shorten(name: str) -> str:
    return name.split(",")[0]
