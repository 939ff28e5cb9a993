"""Train a backbone of this package on a folder of class folders, from scratch or from a checkpoint.

    python weights/train.py tiny-imagenet-200/train runs/wide --precision bf16 --compile

The defaults train the wide network that the bundled model was cut from; HISTORY.md beside this file has every command.
Every phase is SIZE:EPOCHS: small pictures first, because they are four times as fast, the full size last. The learning
rate warms up, stays constant, and decays to zero over the last --decay-epochs. With --teacher, the target is a mixture
of the labels and of another network's predictions for the same augmented batch (Beyer et al.,
https://arxiv.org/abs/2106.05237). --holdout pictures of each class are not trained on; the averaged weights are
evaluated on them after each epoch, at that epoch's size.

After each epoch the run's folder gets state.pt, from which the same command resumes (also with other --phases until the
rate decays), options.json and curve.csv; at the end, under the paper's parameter names, model.safetensors with the
averaged weights and last.safetensors with those of the last step. Augmentation, mixup, optimiser, schedule and
averaging are timm's (1.0.31 or later).

All pictures are decoded into memory once: 1.2 GB for Tiny ImageNet. On one CPU a command is deterministic; other
processors and other --workers give other random numbers and rounding. On Linux, a step on the CPU is a quarter faster
with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 (huge pages, and freed
memory is kept).
"""

import argparse
import csv
import io
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import DecodedPictures, Transform, create_eval_transform, normalise, split
from safetensors.torch import save
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import WSDLRScheduler
from timm.utils import ModelEmaV3, accuracy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler

from mfcli.errors import ModelError
from mfcli.files import write_atomically
from mfcli.models.checkpoint import read_tensors
from mfcli.models.metaformer import build_model
from mfcli.models.registry import ARCHITECTURES, Family

STATE, OPTIONS, CURVE = "state.pt", "options.json", "curve.csv"
WEIGHTS, LAST = "model.safetensors", "last.safetensors"
FIXED = (
    *("architecture", "init", "teacher", "teacher_architecture", "distill"),
    *("holdout", "batch_size", "max_steps", "optimizer", "weight_decay", "seed"),
)
"""Options that a resumed run cannot change, because its state depends on them."""
WIDE = replace(ARCHITECTURES["convformer_t8"], name="convformer_t9", depths=(1, 2, 4, 2), mlp_ratio=4)
"""The network that the bundled model was cut from."""
ROWS = {**ARCHITECTURES, WIDE.name: WIDE}
ANY_SIZE = sorted(name for name, row in ROWS.items() if row.family is not Family.RANDFORMER)
COLUMNS = ("epoch", "size", "lr", "train_loss", "holdout_loss", "holdout_top1", "holdout_top5", "seconds")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", type=Path, help="folder of class folders")
    add("output", type=Path, help="folder of this run")
    add(
        "--architecture",
        default="convformer_t9",
        choices=ANY_SIZE,
        help="row of the registry, or the wide network",
    )
    add("--phases", type=parse_phases, default="32:14,48:9,64:1", help="SIZE:EPOCHS, in order")
    add("--decay-epochs", type=int, default=10, help="last epochs, over which the learning rate decays to zero")
    add("--warmup-steps", type=int, default=400)
    add("--batch-size", type=int, default=512)
    add("--optimizer", type=str.lower, default="muon", help="any of timm's")
    add("--lr", type=float, default=2.5e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--drop-path", type=float, default=0.05)
    add("--scale", type=float, default=0.3, help="minimum share of the area in a random crop")
    add("--color-jitter", type=float, default=0.0)
    add("--grayscale", type=float, default=0.0, help="share of the pictures that become grey")
    add("--auto-augment", default=None, help="timm's string, for instance rand-m7-mstd0.5-inc1")
    add("--mixup", type=float, default=0.2, help="alpha of mixup")
    add("--cutmix", type=float, default=1.0, help="alpha of cutmix")
    add("--mixup-prob", type=float, default=0.3, help="share of the batches with mixup or cutmix")
    add("--mixup-off-epochs", type=int, default=1, help="last epochs, without mixup and cutmix")
    add("--smoothing", type=float, default=0.1)
    add("--init", type=Path, help="checkpoint of the initial weights, instead of random ones")
    add("--teacher", type=Path, help="checkpoint of --teacher-architecture to distil from")
    add("--teacher-architecture", default="convformer_t9", choices=ANY_SIZE)
    add("--distill", type=float, default=0.5, help="share of the teacher in the target; the rest is the labels")
    add("--ema", type=float, default=0.998, help="maximum decay of the moving average of the weights")
    add("--ema-power", type=float, default=0.75, help="decay at step t is 1 - (1 + t) ** -POWER; 1 is the plain mean")
    add("--holdout", type=int, default=25, help="pictures of each class to keep out of training")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--precision", default="fp32", choices=("fp32", "bf16"))
    add("--compile", action="store_true", help="torch.compile the training step's model")
    add("--workers", type=int, default=1, help="processes for augmentation")
    add("--max-steps", type=int, default=None, help="of an epoch")
    options = parser.parse_args(argv)
    if options.batch_size < 2 or options.batch_size % 2:
        parser.error(f"--batch-size {options.batch_size} is not even: mixup pairs pictures")
    if options.decay_epochs < 1:
        parser.error(f"--decay-epochs {options.decay_epochs} is not positive")
    for name in ("distill", "mixup_prob", "grayscale", "scale"):
        if not 0 <= (share := getattr(options, name)) <= 1:
            parser.error(f"--{name.replace('_', '-')} {share} is not between 0 and 1")
    if options.color_jitter and options.auto_augment and "3a" not in options.auto_augment:
        parser.error("--color-jitter has no effect with --auto-augment, which changes colours itself")
    if options.workers < 0:
        parser.error(f"--workers {options.workers} is negative")
    return options


def parse_phases(phases: str) -> list[int]:
    """Return the picture size of each epoch."""
    sizes = []
    for phase in phases.split(","):
        size, _, epochs = phase.partition(":")
        if not (size.isdecimal() and epochs.isdecimal() and int(size) and int(epochs)):
            raise argparse.ArgumentTypeError(f"'{phase}' is not SIZE:EPOCHS")
        sizes += [int(size)] * int(epochs)
    return sizes


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint of the same architecture and classes into a model."""
    try:
        tensors = read_tensors(path).items()
        model.load_state_dict({name: torch.from_numpy(np.array(t.read(), np.float32)) for name, t in tensors})
    except (ModelError, RuntimeError) as error:
        raise SystemExit(f"{path} cannot be loaded: {error}") from error


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name; with muon, AdamW updates whatever is not a plain matrix."""
    others = ("*dwconv*", "downsample_layers.0.*", "head.*") if "muon" in options.optimizer else ()
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model, options.optimizer, lr=options.lr, weight_decay=options.weight_decay, fallback_list=others
        )
    except ValueError as error:
        raise SystemExit(f"--optimizer {options.optimizer}: {error}") from error
    return optimizer


def create_train_transform(options: argparse.Namespace, size: int) -> Transform:
    """Return timm's training transform without the normalisation, which is done by batch."""
    policy = options.auto_augment
    if policy and "-inc1" in policy and "-mmax" not in policy:
        policy += "-mmax9"  # at magnitude 10 timm posterizes to 0 bits, which Pillow 12 refuses in mid-run
    try:
        transform: Transform = create_transform(
            size,
            is_training=True,
            scale=(options.scale, 1.0),
            color_jitter=options.color_jitter,
            grayscale_prob=options.grayscale,
            auto_augment=policy,
            interpolation="random",
            use_prefetcher=True,
        )
    except (AssertionError, ValueError) as error:
        raise SystemExit(f"--auto-augment {options.auto_augment} is unknown to timm") from error
    return transform


class Run:
    """One training run: what its state.pt holds, and the loop over epochs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sizes: list[int] = options.phases
        kept, held_out, self.classes = split(options.data, options.holdout)
        self.check_steps(len(kept))
        transform = create_train_transform(options, self.sizes[0])  # fails here, before the pictures are decoded
        self.epoch = 0
        self.curve: list[dict[str, float]] = []
        state = self.read_state()
        seed_generators(options.seed, 0)
        try:
            self.device = torch.device(options.device)
            self.model = build_model(
                ROWS[options.architecture], num_classes=len(self.classes), drop_path_rate=options.drop_path
            ).to(self.device)
            self.model.to(memory_format=torch.channels_last)
        except (AssertionError, RuntimeError) as error:  # torch raises either for an unknown device
            raise SystemExit(f"--device {options.device}: {error}") from error
        self.optimizer = make_optimizer(self.model, options)
        self.ema = ModelEmaV3(self.model, options.ema, use_warmup=True, warmup_power=options.ema_power)
        total = self.steps * len(self.sizes)
        self.schedule = WSDLRScheduler(
            self.optimizer,
            t_initial=total - options.warmup_steps,
            decay_t=min(self.steps * options.decay_epochs, total - options.warmup_steps),
            decay_fn="linear",
            warmup_t=options.warmup_steps,
            warmup_lr_init=options.lr / 100,
            t_in_epochs=False,
        )
        self.mixup = Mixup(
            options.mixup,
            options.cutmix,
            prob=options.mixup_prob if options.mixup or options.cutmix else 0.0,
            label_smoothing=options.smoothing,
            num_classes=len(self.classes),
        )
        self.forward: Callable[[Tensor], Tensor] = (
            torch.compile(self.model, dynamic=False) if options.compile else self.model
        )
        self.teacher = self.load_teacher()
        if options.init and not state:
            load_weights(self.model, options.init)
        if state:
            self.model.load_state_dict(state["model"])
            self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.train = DecodedPictures.read(kept, transform)
        self.holdout = DecodedPictures.read(held_out, create_eval_transform(self.sizes[0], 1.0))

    def check_steps(self, pictures: int) -> None:
        """Set the steps of an epoch; refuse a run that is too short."""
        options = self.options
        self.steps = min(pictures // options.batch_size, options.max_steps or pictures)
        if not self.steps:
            raise SystemExit(f"{pictures} pictures do not fill one batch of {options.batch_size}")
        if options.warmup_steps >= self.steps * len(self.sizes):
            total = self.steps * len(self.sizes)
            raise SystemExit(f"--warmup-steps {options.warmup_steps} is not less than the run's {total} steps")

    def read_state(self) -> dict[str, Any] | None:
        """Restore epoch and curve of the run in the folder; return its tensors, None if there is no run."""
        options, folder = self.options, self.options.output
        plain = {**vars(options), "data": str(options.data), "output": str(folder), "classes": self.classes}
        plain |= {name: str(plain[name]) for name in ("init", "teacher") if plain[name]}
        state = None
        if (folder / STATE).exists():
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            self.epoch, self.curve = state["epoch"], state["curve"]
            if (folder / OPTIONS).exists():
                self.check_same_run(json.loads((folder / OPTIONS).read_text()), plain)
        self.options_json = json.dumps(plain, indent=1) + "\n"
        return state

    def check_same_run(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Refuse to resume with options on which the state depends."""
        if changed := [name for name in (*FIXED, "classes") if before.get(name) != now[name]]:
            raise SystemExit(f"{self.options.output} was started with another {changed[0]}; use another folder")
        plan = ("phases", "decay_epochs")
        is_decaying = self.epoch > len(before["phases"]) - before["decay_epochs"]
        if is_decaying and any(before[name] != now[name] for name in plan):
            raise SystemExit("the learning rate is already decaying: --phases and --decay-epochs can no longer change")

    def save(self) -> None:
        """Write options.json, state.pt and curve.csv, each atomically."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "curve": self.curve,
        }
        binary, text = io.BytesIO(), io.StringIO()
        torch.save(state, binary)
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.curve)
        write_atomically(self.options.output / OPTIONS, self.options_json.encode())
        write_atomically(self.options.output / STATE, binary.getvalue())
        write_atomically(self.options.output / CURVE, text.getvalue().encode())

    def load_teacher(self) -> Callable[[Tensor], Tensor] | None:
        """Return the teacher, ready to run; None if there is none."""
        if not self.options.teacher:
            return None
        row = ROWS[self.options.teacher_architecture]
        teacher = build_model(row, num_classes=len(self.classes)).eval().requires_grad_(False)
        load_weights(teacher, self.options.teacher)
        teacher.to(self.device)
        teacher.to(memory_format=torch.channels_last)
        return torch.compile(teacher, dynamic=False) if self.options.compile else teacher

    @torch.no_grad()
    def mix_in_teacher(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return targets (N, classes) with the teacher's share of its probabilities for these inputs."""
        if self.teacher is None:
            return targets
        with self.autocast():
            probs = self.teacher(inputs).float().softmax(1)
        return torch.lerp(targets, probs, self.options.distill)

    def autocast(self) -> torch.autocast:
        """Return the context for the model's forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def train_epoch(self, size: int) -> float:
        """Train on every picture once at `size` pixels; return the mean loss."""
        options = self.options
        seed_generators(options.seed, self.epoch + 1)
        self.train.transform = create_train_transform(options, size)
        order = torch.Generator().manual_seed(options.seed * 1_000_003 + self.epoch)
        loader = DataLoader(
            self.train,
            options.batch_size,
            sampler=RandomSampler(self.train, generator=order),
            drop_last=True,
            num_workers=options.workers,
            pin_memory=self.device.type == "cuda",
        )
        self.model.train()
        self.mixup.mixup_enabled = self.epoch < len(self.sizes) - options.mixup_off_epochs
        loss_of = SoftTargetCrossEntropy()
        losses = []
        for step, (pictures, targets) in zip(range(self.steps), loader, strict=False):
            update = self.epoch * self.steps + step
            self.schedule.step_update(update)
            inputs, soft = self.mixup(normalise(pictures, self.device), targets.to(self.device))
            soft = self.mix_in_teacher(inputs, soft)
            with self.autocast():
                logits = self.forward(inputs)
            loss = loss_of(logits.float(), soft)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update(self.model, update)
            losses.append(loss.detach())
            if step % 50 == 0:
                print(f"epoch {self.epoch} step {step}/{self.steps} loss {loss.item():.3f}", flush=True)
        return torch.stack(losses).mean().item()

    @torch.inference_mode()
    def evaluate(self, size: int) -> tuple[float, float, float]:
        """Return loss, top-1 and top-5 (percent) of the averaged weights on the held-out pictures."""
        if not len(self.holdout):
            return float("nan"), float("nan"), float("nan")
        self.holdout.transform = create_eval_transform(size, 1.0)
        logits, targets = [], []
        for pictures, labels in DataLoader(self.holdout, self.options.batch_size):
            with self.autocast():
                logits.append(self.ema.module(normalise(pictures, self.device)).float())
            targets.append(labels.to(self.device))
        scores, answers = torch.cat(logits), torch.cat(targets)
        top1, top5 = accuracy(scores, answers, topk=(1, 5))
        return F.cross_entropy(scores, answers).item(), top1.item(), top5.item()

    def run(self) -> None:
        """Train the remaining epochs, then write the averaged weights and those of the last step."""
        while self.epoch < len(self.sizes):
            size, started = self.sizes[self.epoch], time.monotonic()
            loss = self.train_epoch(size)
            if not math.isfinite(loss):
                raise SystemExit(
                    f"epoch {self.epoch}: the loss is {loss}; resume from the previous epoch with a lower --lr"
                )
            measured = self.evaluate(size)
            lr = self.optimizer.param_groups[0]["lr"]
            seconds = round(time.monotonic() - started, 1)
            self.curve.append(dict(zip(COLUMNS, (self.epoch, size, lr, loss, *measured, seconds), strict=True)))
            self.epoch += 1
            self.save()
            print(" ".join(f"{name} {value:.5g}" for name, value in self.curve[-1].items()), flush=True)
        for name, model in ((WEIGHTS, self.ema.module), (LAST, self.model)):
            weights = {key: tensor.float().cpu().contiguous() for key, tensor in model.state_dict().items()}
            write_atomically(self.options.output / name, save(weights))


def seed_generators(base: int, epoch: int) -> None:
    """Seed all random generators."""
    torch.manual_seed(base * 1_000_003 + epoch)
    np.random.seed((base * 1_000_003 + epoch) % 2**32)
    random.seed(base * 1_000_003 + epoch)


def main(argv: list[str] | None = None) -> None:
    """Train."""
    Run(parse_arguments(argv)).run()


if __name__ == "__main__":
    main()
