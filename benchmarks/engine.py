"""Measure engine speed: the artifact's graph against the plain export of timm's model.

Both sides have the same random weights; nothing is downloaded. All candidates run in every round, in random order, and
the table shows medians: milliseconds per image, the ratio to the plain export in the same round, and the share of the
rate at which ONNX Runtime multiplies two square float32 matrices with the same threads (an image counts --gflop). Top-5
classes are compared with torch in float32; classes whose logits differ by less than 1e-4 of their standard deviation
are tied. Needs `pip install '.[bench]'` and an otherwise idle machine:

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
from functools import partial
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
from mfcli.models.matching import to_reference_names
from mfcli.models.registry import Variant, find_variant
from mfcli.settings import Settings, usable_cores

Batch = NDArray[np.float32]
PLAIN, PRODUCT = "plain export", "product"
TIE = 1e-4
"""Share of the logits' standard deviation below which two are tied."""


def create_random_model(variant: Variant) -> torch.nn.Module:
    """Return the backbone with random weights, scales and biases that keep activations near 1."""
    torch.manual_seed(0)
    model = create_model(variant.name)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif not name.endswith("random_matrix"):
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return model


def export_timm_model(model: torch.nn.Module, variant: Variant, path: Path) -> None:
    """Export timm's model with the same weights, with the defaults of torch.onnx.export."""
    assert variant.timm_name
    twin = timm.create_model(variant.timm_name, pretrained=False, num_classes=variant.num_classes).eval()
    target, own = twin.state_dict(), model.state_dict()
    source = dict(zip(to_reference_names(dict.fromkeys(target, torch.empty(0))), target, strict=True))
    twin.load_state_dict({source[name]: own[name].reshape(target[source[name]].shape) for name in own})
    example = torch.zeros(2, *variant.input_size)
    shapes = ({0: torch.export.Dim("N")},)
    torch.onnx.export(twin, (example,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)


def open_session(model: str | bytes, threads: int, **options: Any) -> onnxruntime.InferenceSession:
    """Return a session with ONNX Runtime's defaults but for the thread count and the options."""
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.log_severity_level = 3
    for name, value in options.items():
        setattr(session_options, name, value)
    return onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])


def bind_batch(session: onnxruntime.InferenceSession, batch: Batch) -> Callable[[], Any]:
    """Return a function that runs this batch in a session."""
    feed = {session.get_inputs()[0].name: batch}
    return lambda: session.run(None, feed)[0]


def build_matrix_product(size: int, threads: int) -> Callable[[], Any]:
    """Return a function that multiplies a matrix by a constant one, both float32 (size, size)."""
    shape = (size, size)
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(shape, np.float32) for _ in range(2))
    infos = [helper.make_tensor_value_info(name, 1, shape) for name in ("a", "y")]
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    graph = helper.make_graph([node], "product", infos[:1], infos[1:], [numpy_helper.from_array(b, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bind_batch(open_session(model.SerializeToString(), threads), a)


def load_engines(artifact: Artifact, threads: int) -> dict[str, Engine]:
    """Return the engines that work here, by their names in the table."""
    candidates = [
        (EngineName.ONNXRUNTIME, Precision.FP32),
        (EngineName.OPENVINO, Precision.FP32),
        (EngineName.OPENVINO, Precision.BF16),
    ]
    engines = {}
    for name, precision in candidates:
        try:
            engines[f"{name} {precision}"] = load_engine(name, artifact, EngineOptions("cpu", precision, threads))
        except EngineError as error:
            print(f"{name} {precision} is left out: {error.message}", file=sys.stderr)
    return engines


def measure_rounds(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Run all in rounds until the time is up, at least three times; return seconds by round. One round warms up."""
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
    """Return the share of images whose top five classes are the expected ones; ties are equal."""
    equal = 0
    for row, truth in zip(logits, expected, strict=True):
        classes, right = np.argsort(-row, kind="stable")[:5], np.argsort(-truth, kind="stable")[:5]
        equal += int(np.abs(truth[classes] - truth[right]).max() <= TIE * truth.std())
    return equal / len(logits)


def print_profile(model: str, batch: Batch, threads: int) -> None:
    """Print the share of time and the number of nodes of each operator."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, threads, enable_profiling=True, profile_file_prefix=f"{folder}/profile")
        run = bind_batch(session, batch)
        for _ in range(6):
            run()
        events = json.loads(Path(session.end_profiling()).read_text())
    durations, names = collections.Counter[str](), collections.defaultdict[str, set[str]](set)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            durations[kind] += event["dur"]
            names[kind].add(event["name"])
    total = sum(durations.values())
    for kind, duration in durations.most_common():
        print(f"  {kind:24} {100 * duration / total:5.1f} %  {len(names[kind]):4} nodes")


def print_table(
    logits: dict[str, Batch], expected: Batch, times: dict[str, list[float]], gflop: float, rates: list[float]
) -> None:
    """Print a row for each candidate.

    Args:
        logits: of each candidate.
        expected: what torch computes.
        times: seconds by round of each candidate.
        gflop: of one image.
        rates: of the matrix product in FLOP/s, by round.
    """
    print(f"{'':18} {'ms/image':>10} {'to plain':>9} {'of product':>10} {'top 5':>6} {'off by':>8}")
    for name, answer in logits.items():
        to_plain = statistics.median(a / b for a, b in zip(times[PLAIN], times[name], strict=True))
        flop = len(expected) * gflop * 1e9
        share = statistics.median(flop / elapsed / rate for elapsed, rate in zip(times[name], rates, strict=True))
        off = np.abs(answer - expected).max() / expected.std()
        milliseconds = 1000 * statistics.median(times[name]) / len(expected)
        print(f"{name:18} {milliseconds:10.1f} {to_plain:9.2f} {share:10.2f}", end=" ")
        print(f"{top5_agreement(answer, expected):6.0%} {off:8.1e}")


def measure(model: torch.nn.Module, plain: Path, artifact: Artifact, arguments: argparse.Namespace) -> None:
    """Run all candidates and print one table, or the profiles of both graphs.

    Args:
        model: in torch.
        plain: the export of timm's model.
        artifact: with the same weights.
        arguments: of the command line.
    """
    threads, size = arguments.threads, arguments.product_size
    shape = (arguments.batch_size, *find_variant(arguments.model).input_size)
    batch = np.random.default_rng(0).standard_normal(shape, np.float32)
    title = f"{arguments.model}, batch {len(batch)}, {threads} threads"
    if arguments.profile:
        for name, path in ((PLAIN, plain), ("artifact", artifact.path)):
            print(f"{name} of {title}")
            print_profile(str(path), batch, threads)
        return
    with torch.inference_mode():
        expected = model(torch.from_numpy(batch)).numpy()
    runs = {PLAIN: bind_batch(open_session(str(plain), threads), batch)}
    runs |= {name: partial(engine.logits, batch) for name, engine in load_engines(artifact, threads).items()}
    logits = {name: run() for name, run in runs.items()}
    times = measure_rounds(runs | {PRODUCT: build_matrix_product(size, threads)}, arguments.seconds)
    rates = [2 * size**3 / elapsed for elapsed in times[PRODUCT]]
    product = f"product of {size}x{size}: {statistics.median(rates) / 1e9:.0f} GFLOP/s"
    print(f"{title}, {len(rates)} rounds; {product}")
    print_table(logits, expected, times, arguments.gflop, rates)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="caformer_s18", help="of mf list-models, one that timm has too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--gflop", type=float, default=8.2, help="of one image (default 8.2, for caformer_s18)")
    parser.add_argument("--product-size", type=int, default=4096, help="rows and columns of the matrices")
    parser.add_argument("--profile", action="store_true", help="print the time of each operator in both graphs instead")
    parser.add_argument("--cache", type=Path, help="folder in which the graphs are kept for the next run")
    parser.add_argument("--quick", action="store_true", help="a small model, one image, three rounds")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.gflop = "poolformerv2_s12", 3.6
        arguments.batch_size, arguments.seconds, arguments.product_size = 1, 0, 512
    if not find_variant(arguments.model).timm_name:
        parser.error(f"timm has no {arguments.model}")
    return arguments


def main() -> None:
    """Build both graphs, measure, print."""
    arguments = parse_arguments()
    variant = find_variant(arguments.model)
    model = create_random_model(variant)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plain, weights = folder / f"{variant.name}.plain.onnx", folder / "weights.pth"
        if not plain.is_file():
            export_timm_model(model, variant, plain)
        torch.save(model.state_dict(), weights)
        artifact = ensure_artifact(variant, weights, Settings(model=variant.name, named_cache_dir=folder, debug=False))
        measure(model, plain, artifact, arguments)


if __name__ == "__main__":
    main()
