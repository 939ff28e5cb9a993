"""Measure the time to the first answer: mf against minimal scripts that do the same work.

Every command runs in its own process and the commands alternate; the table shows the median wall time and peak memory
of each and their ratio to the script it is compared with. The weights of caformer_s18 are random, and its artifact is
built before anything is timed. Needs `pip install '.[bench]'` and an otherwise idle machine:

    python benchmarks/cold_start.py examples/orange.jpg --rounds 15
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ONNXRUNTIME_SCRIPT = """
import json, sys
import numpy, onnxruntime
from PIL import Image
path, size = sys.argv[2], 64
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
labels = json.loads(session.get_modelmeta().custom_metadata_map["mfcli.labels"])
image = Image.open(path).convert("RGB")
scale = size / min(image.size)
image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BICUBIC)
left, top = (image.width - size) // 2, (image.height - size) // 2
pixels = numpy.asarray(image.crop((left, top, left + size, top + size)), numpy.float32) / 255
pixels = (pixels - numpy.float32([0.485, 0.456, 0.406])) / numpy.float32([0.229, 0.224, 0.225])
logits = session.run(["logits"], {"input": pixels.transpose(2, 0, 1)[None]})[0][0]
probs = numpy.exp(logits - logits.max())
probs /= probs.sum()
for index in probs.argsort()[::-1][:5]:
    print(labels[index][1], probs[index])
"""
TIMM_SCRIPT = """
import sys
import timm, torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform
model = timm.create_model("caformer_s18", checkpoint_path=sys.argv[1]).eval()
transform = create_transform(input_size=(3, 224, 224), crop_pct=1.0, interpolation="bicubic")
with torch.inference_mode():
    probs = model(transform(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(-1)[0]
names = ImageNetInfo("imagenet-1k")
for prob, index in zip(*probs.topk(5)):
    print(names.index_to_description(int(index)), float(prob))
"""


@dataclass(frozen=True)
class Row:
    """A command of mf, the script it is compared with, and the highest accepted ratios of time and memory."""

    name: str
    command: list[str]
    peer: str
    max_time: float
    max_memory: float | None = None


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command once; return its wall time in seconds and its peak resident memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - started
    if status:
        raise SystemExit(f"this command failed: {' '.join(command)[:300]}")
    return elapsed, usage.ru_maxrss / 1024


PREPARE_SCRIPT = """
import sys
import timm, torch
from mfcli import create_model
from mfcli.models.matching import to_reference_names
torch.manual_seed(0)
model = create_model("caformer_s18")
state = {k: torch.randn_like(v) * v[0].numel() ** -0.5 if v.ndim > 1 else v for k, v in model.state_dict().items()}
torch.save(state, sys.argv[1])
twin = timm.create_model("caformer_s18").state_dict()
names = zip(twin, to_reference_names(dict(twin)), strict=True)
torch.save({theirs: state[ours].reshape(twin[theirs].shape) for theirs, ours in names}, sys.argv[2])
"""
"""Writes random weights of caformer_s18 under the paper's names and under timm's. It runs in a process of its own: the
peak memory of a child includes the pages it shared with its parent until exec, so this one must stay small."""


def write_weights(folder: Path) -> tuple[Path, Path]:
    """Write random weights of caformer_s18 under the paper's names and under timm's; return both files."""
    ours, theirs = folder / "caformer_s18.pth", folder / "caformer_s18_timm.pth"
    subprocess.run([sys.executable, "-c", PREPARE_SCRIPT, str(ours), str(theirs)], check=True)
    return ours, theirs


def list_commands(picture: str, ours: Path, theirs: Path) -> tuple[dict[str, list[str]], list[Row]]:
    """Return the scripts to compare with, by name, and the rows of the table.

    Args:
        picture: the file to classify.
        ours: weights of caformer_s18 under the paper's names.
        theirs: the same weights under timm's names.
    """
    from mfcli.hub.bundled import bundled_file

    mf = [str(Path(sys.executable).with_name("mf"))]
    artifact = str(bundled_file("convformer_t8_64.onnx"))
    imports, bare, notebook = "import typer, rich.table", "onnxruntime script", "timm script"
    peers = {
        imports: [sys.executable, "-c", imports],
        bare: [sys.executable, "-c", ONNXRUNTIME_SCRIPT, artifact, picture],
        notebook: [sys.executable, "-c", TIMM_SCRIPT, str(theirs), picture],
    }
    own = ["predict", picture, "--model", "caformer_s18", "--weights", str(ours)]
    rows = [
        Row("mf --help", [*mf, "--help"], imports, 2),
        Row("mf --version", [*mf, "--version"], imports, 2),
        Row("mf list-models", [*mf, "list-models"], imports, 4),
        Row("mf predict --help", [*mf, "predict", "--help"], imports, 4),
        Row("mf predict (bundled)", [*mf, "predict", picture], bare, 1.4),
        Row("mf predict (caformer_s18)", [*mf, *own], notebook, 0.15, 0.3),
    ]
    return peers, rows


def measure_rounds(commands: dict[str, list[str]], rounds: int, warm_up: bool) -> dict[str, tuple[float, float]]:
    """Return the median seconds and MiB of each command.

    Args:
        commands: by name.
        rounds: how often each command runs.
        warm_up: whether each runs once before, which builds the artifact and fills the page cache.
    """
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MF_")} | {"MF_CACHE_DIR": cache}
        for number in range(-warm_up, rounds):
            for name, command in commands.items():
                figures = measure(command, environment)
                if number >= 0:
                    runs[name].append(figures)
    return {name: (statistics.median(w for w, _ in r), statistics.median(m for _, m in r)) for name, r in runs.items()}


def print_table(peers: dict[str, list[str]], rows: list[Row], medians: dict[str, tuple[float, float]]) -> bool:
    """Print the medians; return whether every ratio is within its limit."""
    print(f"{'command':28}{'seconds':>8}{'MiB':>7}   {'time ratio':>14}{'memory':>12}  to")
    for name in peers:
        print(f"{name:28}{medians[name][0]:8.3f}{medians[name][1]:7.0f}")
    within = True
    for row in rows:
        (seconds, mib), (peer_seconds, peer_mib) = medians[row.name], medians[row.peer]
        time_ratio, memory_ratio = seconds / peer_seconds, mib / peer_mib
        within &= time_ratio <= row.max_time and memory_ratio <= (row.max_memory or math.inf)
        limits = f"{time_ratio:6.2f} (<= {row.max_time:g})".ljust(17)
        limits += f"{memory_ratio:5.2f}" + (f" (<= {row.max_memory:g})" if row.max_memory else "")
        print(f"{row.name:28}{seconds:8.3f}{mib:7.0f}   {limits:34}{row.peer}")
    return within


def main() -> int:
    """Measure and print; exit code 1 if a ratio exceeds its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--rounds", type=int, default=15, help="how often every command runs (default 15)")
    parser.add_argument("--quick", action="store_true", help="run every command once and ignore the limits")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        peers, rows = list_commands(arguments.picture, *write_weights(Path(folder)))
        commands = peers | {row.name: row.command for row in rows}
        medians = measure_rounds(commands, 1 if arguments.quick else arguments.rounds, warm_up=not arguments.quick)
    return int(not print_table(peers, rows, medians) and not arguments.quick)


if __name__ == "__main__":
    sys.exit(main())
