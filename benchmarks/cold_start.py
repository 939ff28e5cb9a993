"""How long the first answer takes: mf beside bare scripts that do the same, in turn, in one run.

Every command is started as a process of its own, the commands take turns, and the table shows medians of wall time and
peak memory and their ratio to the peer. Weights of caformer_s18 are generated; its artifact is built before anything is
timed. Run it on a machine that does nothing else:

    python benchmarks/cold_start.py examples/orange.jpg --rounds 15
"""

import argparse
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
    """A command of mf, the peer it is held against, and the largest accepted ratios of time and memory."""

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
from mfcli.models.checkpoint import to_reference_names
torch.manual_seed(0)
model = create_model("caformer_s18")
state = {k: torch.randn_like(v) * v[0].numel() ** -0.5 if v.ndim > 1 else v for k, v in model.state_dict().items()}
torch.save(state, sys.argv[1])
twin = timm.create_model("caformer_s18").state_dict()
names = zip(twin, to_reference_names(dict(twin)), strict=True)
torch.save({theirs: state[ours].reshape(twin[theirs].shape) for theirs, ours in names}, sys.argv[2])
"""
"""Writes generated weights of caformer_s18 under the paper's names and under timm's; in a process of its own, because a
child's peak memory counts what it shared with a large parent before it became another program."""


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write generated weights of caformer_s18; return the paper's layout and timm's."""
    ours, theirs = folder / "caformer_s18.pth", folder / "caformer_s18_timm.pth"
    subprocess.run([sys.executable, "-c", PREPARE_SCRIPT, str(ours), str(theirs)], check=True)
    return ours, theirs


def commands(picture: str, ours: Path, theirs: Path) -> tuple[dict[str, list[str]], list[Row]]:
    """Return the peers by name, and the rows."""
    from mfcli.hub.acquire import bundled_file

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


def main() -> int:
    """Measure and print; exit code 1 if a ratio is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--rounds", type=int, default=15, help="how often every command runs (default 15)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MF_")} | {"MF_CACHE_DIR": folder}
        peers, rows = commands(arguments.picture, *prepare(Path(folder)))
        everything = peers | {row.name: row.command for row in rows}
        for command in everything.values():
            measure(command, environment)  # builds the artifact, fills the disk cache
        found = {name: [] for name in everything}
        for _ in range(arguments.rounds):
            for name, command in everything.items():
                found[name].append(measure(command, environment))
    seconds = {name: statistics.median(wall for wall, _ in runs) for name, runs in found.items()}
    memory = {name: statistics.median(mib for _, mib in runs) for name, runs in found.items()}
    print(f"{'command':28}{'seconds':>8}{'MiB':>7}   {'ratio of time':>14}{'of memory':>12}  to")
    for name in peers:
        print(f"{name:28}{seconds[name]:8.3f}{memory[name]:7.0f}")
    over = False
    for row in rows:
        time_ratio, memory_ratio = seconds[row.name] / seconds[row.peer], memory[row.name] / memory[row.peer]
        over |= time_ratio > row.max_time or memory_ratio > (row.max_memory or 1e9)
        limits = f"{time_ratio:6.2f} (<= {row.max_time:g})".ljust(17)
        limits += f"{memory_ratio:5.2f}" + (f" (<= {row.max_memory:g})" if row.max_memory else "")
        print(f"{row.name:28}{seconds[row.name]:8.3f}{memory[row.name]:7.0f}   {limits:34}{row.peer}")
    return over


if __name__ == "__main__":
    sys.exit(main())
