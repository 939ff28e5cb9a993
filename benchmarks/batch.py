"""How many pictures a second: mf beside what people write with timm, torch and ONNX Runtime, in turn, in one run.

The peers, all in float32 on the CPU with the same generated weights and the same photos, from file to top-5:

    timm, a loop            create_model, create_transform, one picture after another, as in a notebook
    timm, DataLoader        the same model in batches, pictures decoded by one worker process a core
    onnxruntime, a loop     timm's model through torch.onnx.export, one picture after another
    onnxruntime, DataLoader the same in batches, decoded as above
    mf predict              a real process: python -m mfcli predict FILES --format csv
    mf predict, bf16        the same with --engine openvino --precision bf16, where that can be had

The peers are loaded once and their loading is not counted. mf's start-up is subtracted: a run over all photos less a
run over two. The rounds of all take turns; the table shows medians, and the ratio to timm with a DataLoader is the
median of the ratios within rounds. Loops get a quarter of the photos. Then the answers are compared: a difference in
the top 5 counts unless timm's own logits of the two classes are closer than 1e-4; exit code 1 if `mf predict` in
float32 has any. Run it on a machine that does nothing else:

    python benchmarks/batch.py FOLDER            # without FOLDER: made-up JPEGs of about 500x375 pixels
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
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
BASE = "timm, DataLoader"
TIE = 1e-4
"""Logits that are closer than this are a tie."""

Logits = NDArray[np.float32]
Run = Callable[[Sequence[str]], Logits]
"""Takes files, returns float32 logits (files, classes)."""


# --- the peers; each runs in a process of its own, see `serve` ------------------------------------------------------


def timm_model(name: str, weights: str) -> tuple[Any, Any]:
    """Return timm's model with the weights, and its transform."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(name, pretrained=False)
    model.load_state_dict(load_file(weights))
    return model.eval(), timm.data.create_transform(**timm.data.resolve_model_data_config(model))


def in_a_loop(transform: Any, forward: Callable[[Any], Logits]) -> Run:
    """One picture after another."""
    from PIL import Image

    def run(files: Sequence[str]) -> Logits:
        return np.concatenate([forward(transform(Image.open(file).convert("RGB"))[None]) for file in files])

    return run


def in_batches(transform: Any, forward: Callable[[Any], Logits], batch_size: int, cores: int) -> Run:
    """Batches from a DataLoader with one worker process a core, which stay between runs."""
    import torch
    from PIL import Image

    class Files(torch.utils.data.Dataset):
        def __init__(self, files: Sequence[str]) -> None:
            self.files = files

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(self.files[index]).convert("RGB"))

    loaders: dict[tuple[str, ...], Any] = {}

    def run(files: Sequence[str]) -> Logits:
        loader = loaders.setdefault(
            tuple(files),
            torch.utils.data.DataLoader(
                Files(files), batch_size=batch_size, num_workers=cores, persistent_workers=True
            ),
        )
        return np.concatenate([forward(batch) for batch in loader])

    return run


def torch_forward(model: Any) -> Callable[[Any], Logits]:
    """The model itself."""
    import torch

    def forward(batch: Any) -> Logits:
        with torch.inference_mode():
            return model(batch).numpy()

    return forward


def onnx_forward(model: Any, folder: str) -> Callable[[Any], Logits]:
    """The model exported as torch's documentation says, in a session with the default options."""
    import onnxruntime
    import torch

    path = Path(folder) / f"timm-{os.getpid()}.onnx"
    size = model.pretrained_cfg["input_size"]
    with redirect_stdout(io.StringIO()):
        torch.onnx.export(
            model,
            (torch.zeros(2, *size),),
            path,
            dynamo=True,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(batch: Any) -> Logits:
        return session.run(["logits"], {"input": batch.numpy()})[0]

    return forward


PEERS = ("timm, a loop", BASE, "onnxruntime, a loop", "onnxruntime, DataLoader")


def serve(peer: str, timm_name: str, weights: str, folder: str, batch_size: int) -> None:
    """Load a peer; for every JSON list of files on stdin, run it and answer with seconds and the file of its logits."""
    from mfcli.settings import usable_cores

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model, transform = timm_model(timm_name, weights)
    forward = torch_forward(model) if peer.startswith("timm") else onnx_forward(model, folder)
    loop = peer.endswith("a loop")
    run = in_a_loop(transform, forward) if loop else in_batches(transform, forward, batch_size, usable_cores())
    path = Path(folder) / f"logits-{os.getpid()}.npy"
    for line in sys.stdin:
        files = json.loads(line)
        started = time.perf_counter()
        logits = run(files)
        elapsed = time.perf_counter() - started
        np.save(path, logits)
        print(json.dumps([elapsed, str(path)]), file=answers, flush=True)


# --- the contestants, as the table sees them ------------------------------------------------------------------------


@dataclass
class Contestant:
    """A row: how it is run, and what was found.

    Attributes:
        name: in the table.
        measure: takes files; returns pictures a second and what it answered.
        share: it gets 1/share of the photos; a loop would take too long with all.
        rates: pictures a second, a round each.
        answer: what it answered first: logits (files, classes), or indices (files, 5).
    """

    name: str
    measure: Callable[[Sequence[str]], tuple[float, NDArray[Any]]]
    share: int = 1
    rates: list[float] = field(default_factory=list)
    answer: NDArray[Any] | None = None


class Peer:
    """A peer's process."""

    def __init__(self, name: str, arguments: argparse.Namespace, timm_name: str, weights: Path) -> None:
        command = [sys.executable, __file__, "--serve", name, timm_name, str(weights), str(weights.parent)]
        command += [str(arguments.batch_size)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def measure(self, files: Sequence[str]) -> tuple[float, Logits]:
        """Run over files."""
        self._process.stdin.write(json.dumps(list(files)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("its process ended")
        elapsed, path = json.loads(line)
        return len(files) / elapsed, np.load(path)

    def close(self) -> None:
        """End it; its workers end with it."""
        self._process.stdin.close()
        self._process.wait(30)


def mf_measure(model: str, weights: Path, batch_size: int, *options: str) -> Callable[..., tuple[float, NDArray[Any]]]:
    """A run of `mf predict` over all files less one over two, each a process; two, because one is run otherwise."""
    command = [sys.executable, "-m", "mfcli", "predict", "-q", "-k", "5", "-m", model, "--weights", str(weights)]
    command += ["--format", "csv", "--batch-size", str(batch_size), *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MF_")}
    environment["MF_CACHE_DIR"] = str(weights.parent / "cache")

    def timed(files: Sequence[str]) -> tuple[float, str]:
        started = time.perf_counter()
        done = subprocess.run([*command, *files], capture_output=True, text=True, env=environment, check=False)
        elapsed = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[0] if done.stderr.strip() else "it failed")
        return elapsed, done.stdout

    def measure(files: Sequence[str]) -> tuple[float, NDArray[Any]]:
        (start_up, _), (elapsed, text) = timed(files[:2]), timed(files)
        rows = list(csv.DictReader(io.StringIO(text)))
        answer = np.array([[int(row[f"class_index_{rank}"]) for rank in range(1, 6)] for row in rows])
        return (len(files) - 2) / (elapsed - start_up), answer

    return measure


# --- comparing ------------------------------------------------------------------------------------------------------


def top5(answer: NDArray[Any]) -> NDArray[Any]:
    """Indices (files, 5) of logits, or indices as they are."""
    return answer if answer.shape[1] == 5 else np.argsort(-answer, axis=1, kind="stable")[:, :5]


def differences(answer: NDArray[Any], reference: Logits) -> tuple[int, int, int]:
    """Return how many photos have another top-5, how many another top-1, and of how many; ties do not count."""
    found, logits = top5(answer), reference[: len(answer)]
    other = np.abs(
        np.take_along_axis(logits, found, 1) - np.take_along_axis(logits, top5(logits), 1)
    )  # 0 where the class is the same
    return int((other > TIE).any(axis=1).sum()), int((other[:, 0] > TIE).sum()), len(answer)


def write_weights(timm_name: str, path: Path) -> None:
    """Write generated weights in timm's layout."""
    program = (
        "import sys, timm, torch; from safetensors.torch import save_file; torch.manual_seed(0);"
        "state = timm.create_model(sys.argv[1]).state_dict();"
        "save_file({k: torch.randn_like(v) * v[0].numel() ** -0.5 if v.ndim > 1 else v for k, v in state.items()},"
        " sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", program, timm_name, str(path)], check=True)


def photos(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The photos of the folder that was named, or made-up ones."""
    from mfcli.synthetic import write_jpegs

    if arguments.folder:
        found = sorted(p for p in Path(arguments.folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        return [str(path) for path in found[: arguments.pictures]]
    pictures = folder / "pictures"
    pictures.mkdir()
    return [str(path) for path in write_jpegs(pictures, arguments.pictures)]


def contestants(arguments: argparse.Namespace, timm_name: str, weights: Path, stack: ExitStack) -> Iterator[Contestant]:
    """Start the peers, name the runs of mf."""
    for name in PEERS:
        peer = Peer(name, arguments, timm_name, weights)
        stack.callback(peer.close)
        yield Contestant(name, peer.measure, 4 if name.endswith("a loop") else 1)
    plain = (arguments.model, weights, arguments.batch_size)
    yield Contestant("mf predict", mf_measure(*plain))
    yield Contestant("mf predict, bf16", mf_measure(*plain, "--engine", "openvino", "--precision", "bf16"))


def measured(rows: list[Contestant], files: list[str], rounds: int) -> list[Contestant]:
    """Warm every row up, leave out what cannot be run, and take turns."""
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


def main() -> int:
    """Measure and print; exit code 1 if mf's float32 answers are not timm's."""
    if sys.argv[1:2] == ["--serve"]:
        *names, batch_size = sys.argv[2:]
        serve(*names, int(batch_size))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="of photos; made-up ones otherwise")
    parser.add_argument("--pictures", type=int, default=200, help="how many photos at most (default 200)")
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument("--model", default="caformer_s18", help="of mf list-models (default caformer_s18)")
    parser.add_argument("--batch-size", type=int, default=8, help="of whatever works in batches (default 8)")
    arguments = parser.parse_args()
    from mfcli.models.registry import find_variant

    timm_name = find_variant(arguments.model).timm_name
    if timm_name is None:
        parser.error(f"timm has no {arguments.model}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = photos(arguments, Path(folder))
        if len(files) < 8:
            parser.error("8 photos are the least")
        weights = Path(folder) / "weights.safetensors"
        write_weights(timm_name, weights)
        rows = measured(list(contestants(arguments, timm_name, weights, stack)), files, arguments.rounds)
    base = next(row for row in rows if row.name == BASE)
    which = "given" if arguments.folder else "made-up"
    print(
        f"{arguments.model}, {len(files)} {which} photos, batches of {arguments.batch_size}, {arguments.rounds} rounds"
    )
    print(f"{'':26}{'images/s':>9}{'min':>8}{'max':>8}{'ratio':>7}   other top-5 / top-1 than timm")
    wrong = 0
    for row in rows:
        ratio = statistics.median(mine / theirs for mine, theirs in zip(row.rates, base.rates, strict=True))
        fives, ones, count = differences(row.answer, base.answer)
        wrong += fives if row.name == "mf predict" else 0
        rate = statistics.median(row.rates)
        print(
            f"{row.name:26}{rate:9.1f}{min(row.rates):8.1f}{max(row.rates):8.1f}{ratio:7.2f}   "
            f"{fives} / {ones} of {count}"
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
