"""How fast the engines are: the artifact's graph beside the plain export of timm's model, in turn, in one run.

Weights are generated and the same on both sides; the network is not used. All candidates take turns in every round, in
an order that changes, and the table shows medians of the rounds: milliseconds a picture, the ratio to the plain export
in the same round, and the share of the rate at which ONNX Runtime multiplies two 4096x4096 float32 matrices with the
same threads (a picture counts --gflop). Top-5 classes are compared with torch in float32; classes whose logits are
closer than 1e-4 of their spread may swap. Run it on a machine that does nothing else:

    python benchmarks/engine.py --model caformer_s18 --batch-size 8 --threads 2 --seconds 60
    python benchmarks/engine.py --profile
"""

import argparse
import collections
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mfcli import create_model
from mfcli.artifact.ensure import ensure_artifact
from mfcli.artifact.file import Artifact
from mfcli.errors import EngineError
from mfcli.inference.engines import load_engine
from mfcli.inference.engines.base import Engine, EngineName, EngineOptions, Precision
from mfcli.models.checkpoint import to_reference_names
from mfcli.models.registry import Variant, find_variant
from mfcli.settings import Settings, usable_cores

Batch = NDArray[np.float32]
PRODUCT_SIZE = 4096
TIE = 1e-4


def generated_model(variant: Variant) -> torch.nn.Module:
    """Return the backbone with random weights that keep activations near 1, scales and biases included."""
    torch.manual_seed(0)
    model = create_model(variant.name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            elif not name.endswith("random_matrix"):
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return model


def plain_export(model: torch.nn.Module, variant: Variant, path: Path) -> None:
    """Export timm's model with the same weights as torch.onnx.export does it without being told anything."""
    twin = timm.create_model(variant.timm_name, pretrained=False, num_classes=variant.num_classes).eval()
    target, own = twin.state_dict(), model.state_dict()
    source = dict(zip(to_reference_names(dict.fromkeys(target, torch.empty(0))), target, strict=True))
    twin.load_state_dict({source[name]: own[name].reshape(target[source[name]].shape) for name in own})
    example = torch.zeros(2, *variant.input_size)
    shapes = ({0: torch.export.Dim("N")},)
    torch.onnx.export(twin, (example,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)


def session(model: str | bytes, threads: int, **options: Any) -> onnxruntime.InferenceSession:
    """Return a session with a thread count, else with ONNX Runtime's defaults."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.log_severity_level = 3
    for name, value in options.items():
        setattr(session_options, name, value)
    return onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])


def runner(loaded: onnxruntime.InferenceSession, batch: Batch) -> Callable[[], Any]:
    """Return a function that runs a batch in a session."""
    feed = {loaded.get_inputs()[0].name: batch}
    return lambda: loaded.run(None, feed)[0]


def matrix_product(threads: int) -> Callable[[], Any]:
    """Return a function that multiplies a matrix by a constant one, both 4096x4096 float32."""
    shape = (PRODUCT_SIZE, PRODUCT_SIZE)
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(shape, np.float32) for _ in range(2))
    infos = [helper.make_tensor_value_info(name, 1, shape) for name in ("a", "y")]
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "product", infos[:1], infos[1:], [numpy_helper.from_array(b, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return runner(session(model.SerializeToString(), threads), a)


def engines(artifact: Artifact, threads: int) -> dict[str, Engine]:
    """Return the engines that work here, by what the table calls them."""
    wanted = [
        (EngineName.ONNXRUNTIME, Precision.FP32),
        (EngineName.OPENVINO, Precision.FP32),
        (EngineName.OPENVINO, Precision.BF16),
    ]
    found = {}
    for name, precision in wanted:
        try:
            found[f"{name} {precision}"] = load_engine(name, artifact, EngineOptions("cpu", precision, threads))
        except EngineError as error:
            print(f"{name} {precision} is left out: {error.message}", file=sys.stderr)
    return found


def take_turns(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Run all in rounds until the time is up; return seconds by round. The first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order, end, warm = list(runs), time.perf_counter() + seconds, False
    while time.perf_counter() < end or len(times[order[0]]) < 3:
        random.shuffle(order)
        for name in order:
            started = time.perf_counter()
            runs[name]()
            if warm:
                times[name].append(time.perf_counter() - started)
        warm = True
    return times


def top5_agreement(logits: Batch, expected: Batch) -> float:
    """Return the share of pictures whose top five classes are the expected ones, but for ties."""
    good = 0
    for row, truth in zip(logits, expected, strict=True):
        classes, right = np.argsort(-row, kind="stable")[:5], np.argsort(-truth, kind="stable")[:5]
        good += bool(np.abs(truth[classes] - truth[right]).max() <= TIE * truth.std())
    return good / len(logits)


def profile(model: str, batch: Batch, threads: int) -> None:
    """Print the time of each kind of node, as a share, with how many there are."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = session(model, threads, enable_profiling=True, profile_file_prefix=f"{folder}/profile")
        run = runner(loaded, batch)
        for _ in range(6):
            run()
        events = json.loads(Path(loaded.end_profiling()).read_text())
    durations, names = collections.Counter[str](), collections.defaultdict[str, set[str]](set)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            durations[kind] += event["dur"]
            names[kind].add(event["name"])
    total = sum(durations.values())
    for kind, duration in durations.most_common():
        print(f"  {kind:24} {100 * duration / total:5.1f} %  {len(names[kind]):4} nodes")


def main() -> None:
    """Build both graphs, let everything take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="caformer_s18", help="a row of mf list-models that timm has too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--gflop", type=float, default=8.2, help="of one picture; 8.2 is right for caformer_s18")
    parser.add_argument("--profile", action="store_true", help="print node times of both graphs instead")
    parser.add_argument("--cache", type=Path, help="folder for the graphs, kept for the next run")
    arguments = parser.parse_args()
    if not find_variant(arguments.model).timm_name:
        parser.error(f"timm has no {arguments.model} to be held against")
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, arguments.cache or Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Print one table."""
    variant, threads = find_variant(arguments.model), arguments.threads
    folder.mkdir(parents=True, exist_ok=True)
    model, plain, weights = generated_model(variant), folder / f"{variant.name}.plain.onnx", folder / "weights.pth"
    if not plain.is_file():
        plain_export(model, variant, plain)
    torch.save(model.state_dict(), weights)
    artifact = ensure_artifact(variant, weights, Settings(model=variant.name, named_cache_dir=folder, debug=False))
    batch = np.random.default_rng(0).standard_normal((arguments.batch_size, *variant.input_size), np.float32)
    if arguments.profile:
        for title, path in (("plain export", plain), ("artifact", artifact.path)):
            print(f"{title}, batch {len(batch)}, {threads} threads")
            profile(str(path), batch, threads)
        return
    with torch.inference_mode():
        expected = model(torch.from_numpy(batch)).numpy()
    runs = {"plain export": runner(session(str(plain), threads), batch), "product": matrix_product(threads)}
    runs |= {name: lambda engine=engine: engine.logits(batch) for name, engine in engines(artifact, threads).items()}
    logits = {name: run() for name, run in runs.items() if name != "product"}
    times = take_turns(runs, arguments.seconds)
    rates = [2 * PRODUCT_SIZE**3 / elapsed for elapsed in times["product"]]
    print(f"{variant.name}, batch {len(batch)}, {threads} threads, {len(rates)} rounds;", end=" ")
    print(f"product of {PRODUCT_SIZE}x{PRODUCT_SIZE}: {statistics.median(rates) / 1e9:.0f} GFLOP/s")
    print(f"{'':18} {'ms/picture':>10} {'to plain':>9} {'of product':>10} {'top 5':>6} {'off by':>8}")
    for name, found in logits.items():
        took = times[name]
        to_plain = statistics.median(a / b for a, b in zip(times["plain export"], took, strict=True))
        work = len(batch) * arguments.gflop * 1e9
        share = statistics.median(work / elapsed / rate for elapsed, rate in zip(took, rates, strict=True))
        off = np.abs(found - expected).max() / expected.std()
        print(f"{name:18} {1000 * statistics.median(took) / len(batch):10.1f} {to_plain:9.2f} {share:10.2f}", end=" ")
        print(f"{top5_agreement(found, expected):6.0%} {off:8.1e}")


if __name__ == "__main__":
    main()
