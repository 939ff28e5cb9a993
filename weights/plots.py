"""Draw the figures of the model card and of docs/concepts.md: python weights/plots.py (needs matplotlib).

curve.svg shows accuracy on the held-out pictures after every epoch, at that epoch's size, from curve_<step>.csv, copies
of the runs' curve.csv. calibration.svg is the reliability diagram of figures.json (`evaluate.py DIR --json
figures.json`); docs/images/concepts.svg is drawn from concepts.json (`concepts.py DIR --json concepts.json`).
"""

import csv
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
mpl.rcParams["svg.hashsalt"] = "mfcli"  # reproducible ids


def save(figure: plt.Figure, name: str) -> None:
    """Write one figure beside this script."""
    figure.savefig(HERE / name, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


RUNS = {
    1: "the wide network, epochs of all pictures",
    3: "cut down and taught, epochs of 30,720",
    4: "alone, epochs of all pictures",
    5: "more of it, epochs of all pictures",
    6: "from the mean, epochs of all pictures",
    7: "from the next mean, epochs of all pictures",
    8: "at 48 pixels, epochs of all pictures",
    9: "with other changes, epochs of all pictures",
    10: "at 48 pixels again, epochs of all pictures",
    11: "taught by its past, epochs of all pictures",
    12: "the same with other changes",
    13: "the same, nothing but 1,000 held out",
}
"""Titles by step of HISTORY.md; each has its curve_<step>.csv."""


def draw_curves() -> None:
    """Draw all runs, three in a row."""
    rows = -(-len(RUNS) // 3)
    figure, panels = plt.subplots(rows, 3, figsize=(12, 3.7 * rows), sharey=True, squeeze=False, layout="constrained")
    for axes, (step, title) in zip(panels.flat, RUNS.items(), strict=False):
        draw_run(axes, f"curve_{step}.csv", f"{step}. {title}")
    for axes in panels.flat[len(RUNS) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set(ylim=(0, None), ylabel="held-out top-1 (%), at that size")
    save(figure, "curve.svg")


def draw_run(axes: plt.Axes, name: str, title: str) -> None:
    """Draw top-1 on the held-out pictures and the learning rate over the epochs, with a line where the size changes."""
    with (HERE / name).open() as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    epochs = [row["epoch"] + 1 for row in rows]
    rates = axes.twinx()
    rates.plot(epochs, [row["lr"] for row in rows], color="tab:gray", linestyle=":")
    rates.set(ylim=(0, None), yticks=[])
    axes.plot(epochs, [row["holdout_top1"] for row in rows], "o-", color="tab:blue", markersize=3)
    axes.set_title(title, fontsize="small")
    axes.set_xlim(0, epochs[-1] + 1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch (dotted: learning rate)")
    for size in sorted({row["size"] for row in rows}):
        first = next(row["epoch"] for row in rows if row["size"] == size)
        if first:
            axes.axvline(first + 0.5, color="black", linewidth=0.5)
        axes.text(first + 0.6, 2, f"{size:.0f} pixels", rotation=90)


def draw_calibration() -> None:
    """Draw accuracy over the mean probability of each bin; the area of a dot is the bin's count."""
    bins = json.loads((HERE / "figures.json").read_text())["bins"]
    counts, probs, shares = zip(*bins, strict=True)
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.plot([0, 1], [0, 1], color="tab:gray", linestyle=":")
    axes.plot(probs, shares, color="tab:blue", linewidth=1)
    axes.scatter(probs, shares, [200 * count / max(counts) for count in counts], color="tab:blue", alpha=0.6)
    axes.set(xlabel="probability of the first answer", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    save(figure, "calibration.svg")


def draw_concepts() -> None:
    """Draw the share of right concepts over the mean of their probabilities, and how many are named."""
    rows = json.loads((HERE / "concepts.json").read_text())["concepts"]
    probs, right, named = ([row[name] for row in rows] for name in ("prob", "right", "named"))
    figure, axes = plt.subplots(figsize=(4, 4))
    axes.plot([0.75, 1], [0.75, 1], color="tab:gray", linestyle=":")
    axes.plot(probs, right, "o-", color="tab:blue", linewidth=1)
    for row, prob, share, count in zip(rows, probs, right, named, strict=True):
        axes.annotate(
            f"{row['setting']}: {count:.0%} named", (prob, share), (6, -12), textcoords="offset points", fontsize=7
        )
    axes.set(
        xlabel="mean probability of the concepts named", ylabel="share that is right", xlim=(0.75, 1.1), ylim=(0.75, 1)
    )
    save(figure, "../docs/images/concepts.svg")


if __name__ == "__main__":
    draw_concepts()
    draw_curves()
    draw_calibration()
