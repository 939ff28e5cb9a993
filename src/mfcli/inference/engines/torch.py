"""The PyTorch model run eagerly: fast on CUDA and MPS, and on the CPU the reference for the other engines.

fp32 is float32 throughout: TF32, the default of CUDA convolutions, is disabled so that the logits match those of the
other engines. bf16 and fp16 convert weights and activations; normalisation layers accumulate in float32.

On CUDA two threads compute at the same time, each in a stream of its own and from pinned memory: while the GPU computes
one batch, the next one is stacked and copied to it, and the one before is ranked.
"""

import contextlib
import queue
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from mfcli.artifact.file import Artifact
from mfcli.errors import BatchTooLargeError, EngineError, ModelError, first_line, is_out_of_memory
from mfcli.inference.engines.base import EngineName, EngineOptions, Precision, cpu_batch_size
from mfcli.models.checkpoint import load_checkpoint, load_model
from mfcli.models.own_weights import read_own_model
from mfcli.models.registry import find_variant
from mfcli.results import Output
from mfcli.settings import usable_cores

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
_GPU_PIXELS = 64 * 224 * 224
_GPU_MAX_BATCH_SIZE = 256
_CUDA_STREAMS = 2


class TorchEngine:
    """A checkpoint loaded into the PyTorch model."""

    name = EngineName.TORCH

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        self.precision = options.precision
        self._extra = options.extra
        device = find_device(options.device)
        self.device = str(device)
        if artifact.checkpoint is None:
            what = "its base model" if artifact.folder else artifact.variant
            raise ModelError(
                f"the torch engine needs the checkpoint of {what}",
                "engine=onnxruntime" if artifact.folder else f"mf download {artifact.variant}, or weights=FILE",
            )
        if self.precision is Precision.FP16 and device.type == "cpu":
            raise EngineError("fp16 needs a GPU", "precision=bf16, or device=cuda")
        height, width = artifact.plan.crop_size
        if device.type == "cpu":
            threads = options.threads or usable_cores()
            torch.set_num_threads(threads)
            self.batch_size = min(cpu_batch_size((height, width), threads), 16)
        else:
            self.batch_size = max(1, min(_GPU_PIXELS // (height * width), _GPU_MAX_BATCH_SIZE))
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.streams = _CUDA_STREAMS if device.type == "cuda" else 1
        self._idle_streams: queue.SimpleQueue[torch.cuda.Stream] = queue.SimpleQueue()
        self._familiarity: tuple[torch.Tensor, ...] = ()
        if artifact.folder is None:
            model = load_checkpoint(artifact.checkpoint, find_variant(artifact.variant), artifact.weights_sha256).model
        else:
            own = read_own_model(artifact.folder, artifact.checkpoint)
            model = load_model(own.weights, own.variant)
            self._familiarity = tuple(torch.from_numpy(array).to(device) for array in own.familiarity)
        try:
            self._model = model.to(device, _DTYPES[self.precision]).to(memory_format=torch.channels_last)
            if device.type == "cuda":
                for _ in range(self.streams):
                    self._idle_streams.put(torch.cuda.Stream(device))
                torch.cuda.synchronize(device)  # the weights are there before another stream reads them
        except RuntimeError as error:
            if is_out_of_memory(error):
                message = f"{self.device} has too little memory for {artifact.variant}"
                raise EngineError(message, "device=cpu") from error
            # an incompatible driver, or a device in use by another process
            raise EngineError(f"{self.device} cannot be used: {first_line(error)}", "device=cpu") from error

    def logits(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (N, 3, H, W) to float32 (N, classes)."""
        return self.compute(batch)[0]

    def compute(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Map float32 (N, 3, H, W) to the logits and what else was asked for."""
        try:
            with torch.inference_mode(), self._stream():
                pixels = self._upload(torch.from_numpy(batch))
                return tuple(output.float().cpu().numpy() for output in self._forward(pixels))
        except RuntimeError as error:
            if is_out_of_memory(error):
                pictures = f"{len(batch)} pictures at once" if len(batch) > 1 else "1 picture"
                remedy = f"batch_size={len(batch) // 2}" if len(batch) > 1 else "device=cpu"
                raise BatchTooLargeError(f"{self.device} has too little memory for {pictures}", remedy) from error
            raise EngineError(f"torch failed: {first_line(error)}") from error

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        """Compute in a CUDA stream that no other thread uses meanwhile."""
        if not self.device.startswith("cuda"):
            yield
            return
        stream = self._idle_streams.get()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._idle_streams.put(stream)

    def _upload(self, batch: torch.Tensor) -> torch.Tensor:
        if self.device.startswith("cuda"):
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device, _DTYPES[self.precision], memory_format=torch.channels_last)

    def _forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not self._extra:
            return (self._model(pixels),)
        last_map = self._model.forward_map(pixels)
        features = self._model.norm(last_map.mean((1, 2)))
        computed = {Output.FEATURES: features, Output.MAP: last_map.permute(0, 3, 1, 2)}
        if self._familiarity:
            computed[Output.DISTANCE] = self._measure_distances(features.float())
        return self._model.head(features), *(computed[output] for output in self._extra)

    def _measure_distances(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, 1), see `models.abstention.Familiarity`."""
        axes, offset, centres = self._familiarity
        moved = features @ axes + offset
        differences = centres.square().sum(1) - 2 * moved @ centres.T
        return differences.amin(1, keepdim=True) + moved.square().sum(1, keepdim=True)


def find_device(name: str) -> torch.device:
    """Return the device of that name; for auto a GPU if there is one.

    Raises:
        EngineError: this machine has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if cuda else 0
        if not count:
            raise EngineError("no CUDA device was found, or torch was built without CUDA", "device=cpu")
        if int(number or 0) >= count:
            raise EngineError(f"there is no {name}: {count} CUDA devices, counted from 0", "device=cuda:0")
        return torch.device("cuda", int(number or 0))
    if kind == "mps" and not mps:
        raise EngineError("no MPS device was found, or torch was built without MPS", "device=cpu")
    return torch.device(kind)
