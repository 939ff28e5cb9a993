"""Fine-tuning: the whole backbone is trained with torch and timm, from a head that was fitted to its features.

Everything random is seeded by epoch, step and picture, so that a run that goes on from `last.pt` ends with the same
bytes on a CPU as one that was never interrupted. The pictures held out choose the epoch; they are never learned.
torch and timm take long to import: import this module inside functions only.
"""

import io
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor

from mfcli.errors import EngineError, OutputError, UsageError, first_line
from mfcli.files import write_atomically
from mfcli.inference.engines.base import Precision
from mfcli.inference.engines.torch import find_device
from mfcli.inputs.sources import Source
from mfcli.models.calibration import fit_temperature, log_loss
from mfcli.models.metaformer import build_model
from mfcli.models.preprocess import PreprocessPlan
from mfcli.models.registry import Architecture
from mfcli.results import Progress, Step
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, usable_cores
from mfcli.training.augmentation import AugmentedPictures, make_loader, seed_generators
from mfcli.training.decoding import DecodedPictures
from mfcli.training.folder import STATE_FILE
from mfcli.training.request import FinetuneOptions

BEST_FILE = "best.safetensors"
"""The averaged weights of the best epoch, beside what a run goes on from."""

_WEIGHT_DECAY, _LAYER_DECAY, _DROP_PATH = 0.05, 0.75, 0.1
_EMA_DECAY, _WARMUP_SHARE, _LAST_LR = 0.998, 0.1, 0.01
_SMOOTHING, _MIXUP_ALPHA, _MIXUP_PROB = 0.1, 0.2, 0.5
_MAX_LOADERS = 8


class DivergedError(EngineError):
    """The loss is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """What is learned, and what is held out.

    Attributes:
        sources: all pictures.
        targets: class of each, (N,).
        held_out: whether it chooses the epoch instead of being learned, (N,).
        class_weights: of the loss, float64 (classes,); 1 on average over the pictures.
    """

    sources: Sequence[Source]
    targets: NDArray[np.intp]
    held_out: NDArray[np.bool_]
    class_weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FinetunedWeights:
    """The result.

    Attributes:
        path: a checkpoint with the averaged weights of the best epoch.
        epochs: of each, the loss, and the log loss and top-1 on the pictures held out.
        best_epoch: counted from 1.
    """

    path: Path
    epochs: list[dict[str, float]]
    best_epoch: int


def finetune(
    architecture: Architecture,
    weights: Mapping[str, NDArray[np.float32]],
    plan: PreprocessPlan,
    lessons: Lessons,
    options: FinetuneOptions,
    seed: int,
    state: Path,
    fingerprint: str,
    is_over: Callable[[], bool] = lambda: False,
    progress: Progress = lambda _: None,
    decode_timeout_s: float = DEFAULT_DECODE_TIMEOUT_S,
) -> FinetunedWeights:
    """Train a backbone and its head, or go on with a training that was interrupted.

    Args:
        architecture: with a linear head.
        weights: where to begin.
        plan: the preprocessing.
        lessons: the pictures.
        options: how.
        seed: another one gives other augmentation.
        state: the folder of `last.pt` and `best.safetensors`.
        fingerprint: of everything above; a state with another one is not continued.
        is_over: asked after each epoch whether the time is over.
        progress: told the steps, the figures of each epoch, and the pictures that can no longer be read.
        decode_timeout_s: seconds that decoding a picture may take.

    Raises:
        DivergedError: the loss becomes NaN or infinite.
        EngineError: the device cannot be used, or has too little memory.
        OutputError: the state is damaged, or cannot be written.
        UsageError: the pictures can no longer be read, or the state has another fingerprint.
    """
    device = find_device(options.device)
    try:
        pictures = DecodedPictures(lessons.sources, lessons.held_out, plan, decode_timeout_s, progress)
        run = _Run(architecture, weights, plan, lessons, pictures, options, seed, device)
        run.restore(state, fingerprint)
        while not run.is_finished and not (run.epoch and is_over()):
            figures = run.train_epoch(progress)
            run.save(state, fingerprint)
            progress(
                f"epoch {run.epoch} of {options.epochs}: loss {figures['loss']:.3f}; held out: "
                f"log loss {figures['log_loss']:.3f}, {figures['top1']:.1%} right"
            )
    except DivergedError:
        shutil.rmtree(state, ignore_errors=True)  # it would diverge again
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {state}: {error.strerror or error}", "name another folder: output=DIR"
        ) from error
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{device} has too little memory for {options.batch_size} pictures at once",
            f"batch_size={max(2, options.batch_size // 4 * 2)}",
        ) from error
    except RuntimeError as error:
        raise EngineError(f"torch failed: {first_line(error)}", "device=cpu") from error
    return FinetunedWeights(state / BEST_FILE, run.history, run.best_epoch)


class _Run:
    """The model that learns, the average of its weights, and the figures so far."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Mapping[str, NDArray[np.float32]],
        plan: PreprocessPlan,
        lessons: Lessons,
        pictures: DecodedPictures,
        options: FinetuneOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        self._options, self._lessons, self._seed = options, lessons, seed % 2**32
        self.history: list[dict[str, float]] = []
        self._device = device
        if device.type == "cpu":
            torch.set_num_threads(usable_cores())
        self._learned, self._judged = np.flatnonzero(~lessons.held_out), np.flatnonzero(lessons.held_out)
        self._batch_size = min(options.batch_size, len(self._learned) // 2 * 2)
        self._steps = len(self._learned) // self._batch_size
        self._total = options.epochs * self._steps
        self._lr = options.lr or options.optimizer.default_lr
        num_classes = len(lessons.class_weights)
        with torch.device("meta"):  # skips the random initialisation
            model = build_model(architecture, num_classes=num_classes, drop_path_rate=_DROP_PATH)
        model.to_empty(device="cpu").load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
        self._model = model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._ema = ModelEmaV3(self._model, _EMA_DECAY, use_warmup=True)
        self._optimizer: torch.optim.Optimizer = create_optimizer_v2(
            self._model, options.optimizer.value, lr=self._lr, weight_decay=_WEIGHT_DECAY, layer_decay=_LAYER_DECAY
        )
        self._schedule = CosineLRScheduler(
            self._optimizer,
            t_initial=self._total,
            lr_min=_LAST_LR * self._lr,
            warmup_t=math.ceil(_WARMUP_SHARE * self._total),
            t_in_epochs=False,
        )
        self._mixup = Mixup(_MIXUP_ALPHA, prob=_MIXUP_PROB, label_smoothing=_SMOOTHING, num_classes=num_classes)
        self._class_weights = torch.from_numpy(lessons.class_weights).float().to(self._device)
        self._pictures = pictures
        loaders = 0 if self._device.type == "cpu" else min(usable_cores(), _MAX_LOADERS)
        self._loader = make_loader(AugmentedPictures(plan, self._seed), pictures, loaders)

    @property
    def epoch(self) -> int:
        """How many are done."""
        return len(self.history)

    @property
    def best_epoch(self) -> int:
        """The one with the least log loss on the pictures held out, counted from 1."""
        losses = [figures["log_loss"] for figures in self.history]
        return losses.index(min(losses)) + 1

    @property
    def is_finished(self) -> bool:
        """Whether there are no more epochs, or the last ones have brought nothing."""
        epochs, patience = self._options.epochs, self._options.patience
        return bool(self.history) and (self.epoch >= epochs or self.epoch - self.best_epoch >= patience)

    def train_epoch(self, progress: Progress) -> dict[str, float]:
        """Train for an epoch and return its figures."""
        self._model.train()
        order = np.random.default_rng((self._seed, self.epoch)).permutation(self._learned)
        batches = order[: self._steps * self._batch_size].reshape(self._steps, self._batch_size)
        started, losses = time.monotonic(), []
        for step, (indices, pixels) in enumerate(self._load(list(batches))):
            update = self.epoch * self._steps + step
            self._schedule.step_update(update + 1)
            seed_generators(self._seed, self.epoch, step)
            losses.append(self._learn(pixels, indices, update))
            rate = (step + 1) * self._batch_size / (time.monotonic() - started)
            words = (
                f"epoch {self.epoch + 1} of {self._options.epochs}, loss {np.mean(losses):.3f}, {rate:.1f} pictures/s"
            )
            progress(Step(words, update + 1, self._total))
        lr = max(float(group["lr"]) for group in self._optimizer.param_groups)
        self.history.append({"loss": float(np.mean(losses)), "lr": lr} | self._judge())
        return self.history[-1]

    def _load(self, batches: Sequence[NDArray[np.intp]]) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
        """Yield the indices and the pixels of the pictures in each batch that can be read."""
        self._pictures.request(self.epoch, batches)
        for indices, pixels in self._loader:
            yield indices.numpy(), pixels.to(self._device, memory_format=torch.channels_last)

    def _learn(self, pixels: Tensor, indices: NDArray[np.intp], update: int) -> float:
        """Take a step, and return the loss before it."""
        if len(indices) % 2:  # mixup takes pairs
            indices, pixels = np.append(indices, indices[0]), torch.cat([pixels, pixels[:1]])
        targets = torch.from_numpy(self._lessons.targets[indices]).to(self._device)
        pixels, mixed = self._mixup(pixels, targets)
        with self._autocast():
            logits = self._model(pixels)
        loss = -(mixed * self._class_weights * logits.float().log_softmax(-1)).sum(-1).mean()
        value = self._check(loss.item())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._ema.update(self._model, step=update)
        return value

    def _judge(self) -> dict[str, float]:
        """Return how good the average is on the pictures held out, after the temperature that suits them."""
        batches = np.array_split(self._judged, math.ceil(len(self._judged) / self._options.batch_size))
        with torch.inference_mode(), self._autocast():
            parts = [(own, self._ema.module(pixels).float().cpu().double()) for own, pixels in self._load(batches)]
        indices = np.concatenate([own for own, _ in parts])
        logits, targets = torch.cat([part for _, part in parts]).numpy(), self._lessons.targets[indices]
        self._check(float(np.abs(logits).max()))
        weights = self._lessons.class_weights[targets]
        loss = log_loss(logits / fit_temperature(logits, targets, weights), targets, weights)
        return {"log_loss": loss, "top1": float((logits.argmax(1) == targets).mean())}

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._options.precision is Precision.BF16)

    def _check(self, value: float) -> float:
        if not math.isfinite(value):
            raise DivergedError(
                f"the training diverged: the loss of epoch {self.epoch + 1} is {value}", f"lr={self._lr / 10:g}"
            )
        return value

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write what a run goes on from, after the weights of the epoch if they are the best.

        Raises:
            OSError: they cannot be written.
        """
        if self.best_epoch == self.epoch:
            arrays = {name: tensor.cpu().contiguous().numpy() for name, tensor in self._ema.module.state_dict().items()}
            write_atomically(folder / BEST_FILE, save(arrays))
        saved, buffer = {name: part.state_dict() for name, part in self._parts.items()}, io.BytesIO()
        torch.save(saved | {"fingerprint": fingerprint, "history": self.history}, buffer)
        write_atomically(folder / STATE_FILE, buffer.getvalue())

    def restore(self, folder: Path, fingerprint: str) -> None:
        """Go on from what `save` wrote, if anything.

        Raises:
            OutputError: it is damaged.
            UsageError: it has another fingerprint.
        """
        path = folder / STATE_FILE
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            is_ours = saved["fingerprint"] == fingerprint
            if is_ours:
                for name, part in self._parts.items():
                    part.load_state_dict(saved[name])
                self.history = saved["history"]
        except Exception as error:  # zipfile and pickle raise almost anything for a damaged file
            raise OutputError(f"{path} is damaged", "overwrite=True begins again") from error
        if not is_ours:
            raise UsageError("the pictures or the base model have changed since", "overwrite=True begins again")

    @property
    def _parts(self) -> dict[str, Any]:
        return {"model": self._model, "ema": self._ema.module, "optimizer": self._optimizer}
