"""Measure throughput: mf against common code for timm, torch and ONNX Runtime.

The peers run float32 on the CPU with the same random weights and the same photos, from file to top-5:

    timm, a loop            create_model, create_transform, one photo after another, as in a notebook
    timm, DataLoader        the same model in batches, decoded by one worker process per core
    onnxruntime, a loop     timm's model through torch.onnx.export, one photo after another
    onnxruntime, DataLoader the same in batches, decoded as above
    mf predict              a whole process: python -m mfcli predict FILES --format csv
    mf predict, bf16        the same with --engine openvino --precision bf16, where available

Peers load before the clock starts. For mf, start-up is subtracted: a run over all photos minus a run over two. All rows
alternate in every round; the table shows medians, and the ratio to timm with a DataLoader is the median of the ratios
within a round. Loops get a quarter of the photos. The answers are compared too: a different top 5 counts unless timm's
logits of the two classes differ by less than 1e-4, and the exit code is 1 if float32 `mf predict` has any. Needs
`pip install '.[bench]'` and an otherwise idle machine:

    python benchmarks/batch.py FOLDER            # without FOLDER: synthetic JPEGs of about 500x375 pixels
"""

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfcli.models.registry import find_variant
from mfcli.settings import usable_cores
from mfcli.synthetic import write_jpegs

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
BASE = "timm, DataLoader"
WEIGHTS, EXPORT = "weights.safetensors", "timm.onnx"
LEAST_PHOTOS = 8
TIE = 1e-4
"""Logits that differ by less are tied."""

Logits = NDArray[np.float32]
Run = Callable[[Sequence[str]], Logits]
"""Takes files, returns float32 logits (files, classes)."""


@dataclass(frozen=True)
class Photos:
    """A map-style dataset of decoded and transformed photos; at module level so that workers can unpickle it."""

    files: Sequence[str]
    transform: Any

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        return self.transform(Image.open(self.files[index]).convert("RGB"))


def create_timm_model(name: str) -> tuple[Any, Any]:
    """Return timm's model with random weights, the same in every process, and its transform."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    state = model.state_dict()
    model.load_state_dict(
        {k: torch.randn_like(v) * v[0].numel() ** -0.5 if v.ndim > 1 else v for k, v in state.items()}
    )
    return model.eval(), timm.data.create_transform(**timm.data.resolve_model_data_config(model))


def write_model(model: Any, folder: Path) -> None:
    """Write the weights for mf, and the model as torch.onnx.export writes it with its defaults."""
    import torch
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / WEIGHTS)
    torch.onnx.export(
        model,
        (torch.zeros(2, *model.pretrained_cfg["input_size"]),),
        folder / EXPORT,
        dynamo=True,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )


def run_in_a_loop(transform: Any, forward: Callable[[Any], Logits]) -> Run:
    """Return a run that takes one photo after another."""

    def run(files: Sequence[str]) -> Logits:
        photos = Photos(files, transform)
        return np.concatenate([forward(photos[index][None]) for index in range(len(photos))])

    return run


def run_in_batches(transform: Any, forward: Callable[[Any], Logits], batch_size: int, cores: int) -> Run:
    """Return a run that takes batches from a DataLoader.

    Args:
        transform: from a PIL image to a tensor (3, H, W).
        forward: from a batch (N, 3, H, W) to logits (N, classes).
        batch_size: photos in a batch.
        cores: worker processes; they are kept between runs.
    """
    from torch.utils.data import DataLoader

    loaders: dict[tuple[str, ...], Any] = {}

    def run(files: Sequence[str]) -> Logits:
        loader = loaders.setdefault(
            tuple(files),
            DataLoader(
                Photos(files, transform),  # type: ignore[arg-type]  # a dataset by its methods
                batch_size=batch_size,
                num_workers=cores,
                persistent_workers=True,
            ),
        )
        return np.concatenate([forward(batch) for batch in loader])

    return run


def run_torch(model: Any) -> Callable[[Any], Logits]:
    """Return a function that runs the model itself."""
    import torch

    def forward(batch: Any) -> Logits:
        with torch.inference_mode():
            logits: Logits = model(batch).numpy()
        return logits

    return forward


def run_onnxruntime(path: Path) -> Callable[[Any], Logits]:
    """Return a function that runs the exported model in a session with the default options."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(batch: Any) -> Logits:
        logits: Logits = session.run(["logits"], {"input": batch.numpy()})[0]
        return logits

    return forward


def serve(library: str, timm_name: str, folder: Path, batch_size: int) -> None:
    """Load timm's model in a library and answer every line on stdin, a JSON list [is_loop, files], with a JSON list.

    The answer is the seconds that the files took and the file of their logits; the first line, once loaded, is empty.

    Args:
        library: timm or onnxruntime. timm writes weights and export; onnxruntime reads them.
        timm_name: timm's name of the model.
        folder: for weights, export and logits.
        batch_size: photos in a batch; a loop takes one.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model, transform = create_timm_model(timm_name)
    if library == "timm":
        write_model(model, folder)
        forward = run_torch(model)
    else:
        forward = run_onnxruntime(folder / EXPORT)
    loop = run_in_a_loop(transform, forward)
    batches = run_in_batches(transform, forward, batch_size, usable_cores())
    path = folder / f"logits-{library}.npy"
    print(file=answers, flush=True)
    for line in sys.stdin:
        is_loop, files = json.loads(line)
        started = time.perf_counter()
        logits = loop(files) if is_loop else batches(files)
        elapsed = time.perf_counter() - started
        np.save(path, logits)
        print(json.dumps([elapsed, str(path)]), file=answers, flush=True)


@dataclass
class Contestant:
    """A row of the table: how it is run, and its measurements.

    Attributes:
        name: in the table.
        measure: takes files; returns photos per second and the answers.
        share: it gets 1/share of the photos; a loop would take too long with all.
        rates: photos per second, one value per round.
        answer: of the first run: logits (files, classes), or class indices (files, 5).
    """

    name: str
    measure: Callable[[Sequence[str]], tuple[float, NDArray[Any]]]
    share: int = 1
    rates: list[float] = field(default_factory=list)
    answer: NDArray[Any] = field(default_factory=lambda: np.empty((0, 5)))


class Peer:
    """The process of a library."""

    def __init__(self, library: str, arguments: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, "--serve", library, arguments.timm_name, str(folder)]
        command += [str(arguments.batch_size)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._read_line()

    def _read_line(self) -> str:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"the process of {self._process.args!r} ended")
        return line

    def measure(self, is_loop: bool, files: Sequence[str]) -> tuple[float, Logits]:
        """Run over files, one after another or in batches; return photos per second and logits."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([is_loop, list(files)]) + "\n")
        self._process.stdin.flush()
        elapsed, path = json.loads(self._read_line())
        return len(files) / elapsed, np.load(path)

    def close(self) -> None:
        """End the process and its workers."""
        self._process.communicate(timeout=30)


def measure_mf(model: str, weights: Path, batch_size: int, *options: str) -> Callable[..., tuple[float, NDArray[Any]]]:
    """Return a function that measures `mf predict`: a run over all files minus one over two, as start-up.

    Two, because a single picture takes another path than a batch.

    Args:
        model: of mf list-models.
        weights: a checkpoint of it; the cache lies beside it.
        batch_size: pictures in a batch.
        options: more of `mf predict`.
    """
    command = [sys.executable, "-m", "mfcli", "predict", "-q", "-k", "5", "-m", model, "--weights", str(weights)]
    command += ["--format", "csv", "--batch-size", str(batch_size), *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MF_")}
    environment["MF_CACHE_DIR"] = str(weights.parent / "cache")

    def timed(files: Sequence[str]) -> tuple[float, str]:
        started = time.perf_counter()
        done = subprocess.run([*command, *files], capture_output=True, text=True, env=environment, check=False)
        elapsed = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}")
        return elapsed, done.stdout

    def measure(files: Sequence[str]) -> tuple[float, NDArray[Any]]:
        (start_up, _), (elapsed, text) = timed(files[:2]), timed(files)
        rows = list(csv.DictReader(io.StringIO(text)))
        answer = np.array([[int(row[f"class_index_{rank}"]) for rank in range(1, 6)] for row in rows])
        return (len(files) - 2) / (elapsed - start_up), answer

    return measure


def top5_of(answer: NDArray[Any]) -> NDArray[Any]:
    """Return the class indices (files, 5) of logits; indices are returned as they are."""
    return answer if answer.shape[1] == 5 else np.argsort(-answer, axis=1, kind="stable")[:, :5]


def count_differences(answer: NDArray[Any], reference: Logits) -> tuple[int, int, int]:
    """Return how many photos have another top 5, how many another top 1, and the number of photos; ties are equal."""
    found, logits = top5_of(answer), reference[: len(answer)]
    other = np.abs(
        np.take_along_axis(logits, found, 1) - np.take_along_axis(logits, top5_of(logits), 1)
    )  # 0 where the class is the same
    return int((other > TIE).any(axis=1).sum()), int((other[:, 0] > TIE).sum()), len(answer)


def list_photos(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Return the photos of the given folder, or synthetic ones."""
    if arguments.folder:
        found = sorted(p for p in Path(arguments.folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        return [str(path) for path in found[: arguments.pictures]]
    pictures = folder / "pictures"
    pictures.mkdir()
    return [str(path) for path in write_jpegs(pictures, arguments.pictures)]


def start_contestants(arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> Iterator[Contestant]:
    """Start the peers, one after the other, and yield all rows; `stack` ends the peers' processes."""
    for library in ("timm", "onnxruntime"):
        peer = Peer(library, arguments, folder)
        stack.callback(peer.close)
        yield Contestant(f"{library}, a loop", partial(peer.measure, True), share=4)
        yield Contestant(f"{library}, DataLoader", partial(peer.measure, False))
    plain = (arguments.model, folder / WEIGHTS, arguments.batch_size)
    yield Contestant("mf predict", measure_mf(*plain))
    yield Contestant("mf predict, bf16", measure_mf(*plain, "--engine", "openvino", "--precision", "bf16"))


def measure_rounds(rows: list[Contestant], files: list[str], rounds: int) -> list[Contestant]:
    """Warm every row up and measure it in every round; return the rows that can run here."""
    able = []
    for row in rows:
        try:
            _, row.answer = row.measure(files[: len(files) // row.share])
        except (RuntimeError, OSError) as error:
            print(f"left out: {row.name}: {error}", file=sys.stderr)
        else:
            able.append(row)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for row in able:
            row.rates.append(row.measure(files[: len(files) // row.share])[0])
    return able


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="of photos (default: synthetic ones)")
    parser.add_argument("--pictures", type=int, default=200, help="how many photos at most (default 200)")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--model", default="caformer_s18", help="of mf list-models (default caformer_s18)")
    parser.add_argument("--batch-size", type=int, default=8, help="of the rows that work in batches (default 8)")
    parser.add_argument("--quick", action="store_true", help="a small model, 8 photos, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.batch_size = "poolformerv2_s12", 2
        arguments.pictures, arguments.rounds = LEAST_PHOTOS, 1
    arguments.timm_name = find_variant(arguments.model).timm_name
    if arguments.timm_name is None:
        parser.error(f"timm has no {arguments.model}")
    return arguments


def print_table(rows: list[Contestant]) -> int:
    """Print the rows; return how many top-5 answers of float32 `mf predict` differ from timm's."""
    base = next(row for row in rows if row.name == BASE)
    print(f"{'':26}{'images/s':>9}{'min':>8}{'max':>8}{'ratio':>7}   other top-5 / top-1 than timm")
    wrong = 0
    for row in rows:
        ratio = statistics.median(mine / theirs for mine, theirs in zip(row.rates, base.rates, strict=True))
        fives, ones, count = count_differences(row.answer, base.answer)
        wrong += fives if row.name == "mf predict" else 0
        rates = f"{statistics.median(row.rates):9.1f}{min(row.rates):8.1f}{max(row.rates):8.1f}{ratio:7.2f}"
        print(f"{row.name:26}{rates}   {fives} / {ones} of {count}")
    return wrong


def run_benchmark(arguments: argparse.Namespace, folder: Path) -> list[Contestant]:
    """Measure all rows that can run here, with weights, graphs and synthetic photos in `folder`."""
    files = list_photos(arguments, folder)
    if len(files) < LEAST_PHOTOS:
        raise SystemExit(f"{len(files)} photos in {arguments.folder}; at least {LEAST_PHOTOS} are needed")
    with ExitStack() as stack:
        rows = list(start_contestants(arguments, folder, stack))
        rows = measure_rounds(rows, files, arguments.rounds)
    kind = "given" if arguments.folder else "synthetic"
    print(
        f"{arguments.model}, {len(files)} {kind} photos, batches of {arguments.batch_size}, {arguments.rounds} rounds"
    )
    return rows


def main() -> int:
    """Measure and print; exit code 1 if mf's float32 answers are not timm's."""
    if sys.argv[1:2] == ["--serve"]:
        library, timm_name, folder, batch_size = sys.argv[2:]
        serve(library, timm_name, Path(folder), int(batch_size))
        return 0
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        rows = run_benchmark(arguments, Path(folder))
    return int(print_table(rows) > 0)


if __name__ == "__main__":
    sys.exit(main())
