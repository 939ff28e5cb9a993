"""Train a backbone of this package on a folder of class folders, from scratch or from a checkpoint.

    python weights/train.py tiny-imagenet-200/train runs/wide --precision bf16 --compile

The defaults train the wide network that the bundled model was cut from; HISTORY.md beside this file has every command.
Every phase is SIZE:EPOCHS: small pictures first, because they are four times as fast, the full size last. The learning
rate warms up, stays, and falls to zero over the last --decay-epochs. With --teacher, what is learned is a mixture of
the labels and of what another network says of the very same crops and mixtures (Beyer et al.,
https://arxiv.org/abs/2106.05237). Some pictures of each class are held out of training (--holdout) and tell after each
epoch how good the averaged weights are, at that epoch's size; nothing else chooses anything.

The run's folder gets state.pt after each epoch, from which the same command goes on (until the rate begins to fall,
also with other --phases), options.json, curve.csv, and at the end, under the paper's parameter names, model.safetensors
with the averaged weights and last.safetensors with those of the last step. Augmentation, mixup, optimiser, schedule and
averaging are timm's (1.0.31 or later).

All pictures are decoded into memory once: 1.2 GB for Tiny ImageNet. One command gives the same losses each time on one
CPU; other processors, and other --workers, draw and round otherwise. Linux on a CPU: huge pages and memory that is kept
make a step a quarter faster (GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=100000000000).
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

import numpy as np
import torch
from pictures import Decoded, normalised, split
from PIL import Image
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
from mfcli.models.checkpoint import read_state_dict
from mfcli.models.metaformer import build_model
from mfcli.models.registry import ARCHITECTURES, Family

STATE, OPTIONS, CURVE = "state.pt", "options.json", "curve.csv"
WEIGHTS, LAST = "model.safetensors", "last.safetensors"
FIXED = (
    *("architecture", "init", "teacher", "teacher_architecture", "distill"),
    *("holdout", "batch_size", "max_steps", "optimizer", "weight_decay", "seed"),
)
"""Options that a run cannot change when it goes on: its state would mean something else."""
WIDE = replace(ARCHITECTURES["convformer_t8"], name="convformer_t9", depths=(1, 2, 4, 2), mlp_ratio=4)
"""The network that the bundled model was cut from."""
ROWS = {**ARCHITECTURES, WIDE.name: WIDE}
ANY_SIZE = sorted(name for name, row in ROWS.items() if row.family is not Family.RANDFORMER)
COLUMNS = ("epoch", "size", "lr", "train_loss", "holdout_loss", "holdout_top1", "holdout_top5", "seconds")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
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
    add("--phases", type=phase_sizes, default="32:14,48:9,64:1", help="SIZE:EPOCHS, in order")
    add("--decay-epochs", type=int, default=10, help="the learning rate falls to zero over the last so many epochs")
    add("--warmup-steps", type=int, default=400)
    add("--batch-size", type=int, default=512)
    add("--optimizer", type=str.lower, default="muon", help="any of timm's")
    add("--lr", type=float, default=2.5e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--drop-path", type=float, default=0.05)
    add("--scale", type=float, default=0.3, help="least share of a picture's area that a random crop keeps")
    add("--color-jitter", type=float, default=0.0)
    add("--grayscale", type=float, default=0.0, help="share of the pictures that lose their colours")
    add("--auto-augment", default=None, help="timm's string, for instance rand-m7-mstd0.5-inc1")
    add("--mixup", type=float, default=0.2, help="alpha of mixup")
    add("--cutmix", type=float, default=1.0, help="alpha of cutmix")
    add("--mixup-prob", type=float, default=0.3, help="share of the batches that are mixed")
    add("--mixup-off-epochs", type=int, default=1, help="over the last so many epochs nothing is mixed")
    add("--smoothing", type=float, default=0.1)
    add("--init", type=Path, help="checkpoint to begin from, instead of random weights")
    add("--teacher", type=Path, help="checkpoint of --teacher-architecture whose answers are learned too")
    add("--teacher-architecture", default="convformer_t9", choices=ANY_SIZE)
    add("--distill", type=float, default=0.5, help="share of the teacher's answer in what is learned, else the labels")
    add("--ema", type=float, default=0.998, help="most of the moving average that a step keeps")
    add("--ema-power", type=float, default=0.75, help="at step t it keeps 1 - (1 + t) ** -POWER: 1 is the plain mean")
    add("--holdout", type=int, default=25, help="pictures of each class that are not trained on")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--precision", default="fp32", choices=("fp32", "bf16"))
    add("--compile", action="store_true", help="torch.compile the training step's model")
    add("--workers", type=int, default=1, help="processes that augment")
    add("--max-steps", type=int, default=None, help="end an epoch after so many steps")
    options = parser.parse_args(argv)
    if options.batch_size < 2 or options.batch_size % 2:
        parser.error(f"--batch-size {options.batch_size} is not even: mixup pairs pictures")
    if options.decay_epochs < 1:
        parser.error(f"--decay-epochs {options.decay_epochs} is not positive")
    for name in ("distill", "mixup_prob", "grayscale", "scale"):
        if not 0 <= (share := getattr(options, name)) <= 1:
            parser.error(f"--{name.replace('_', '-')} {share} is no share between 0 and 1")
    if options.color_jitter and options.auto_augment and "3a" not in options.auto_augment:
        parser.error("--color-jitter does nothing beside --auto-augment, which has its own colour changes")
    if options.workers < 0:
        parser.error(f"--workers {options.workers} is negative")
    return options


def phase_sizes(phases: str) -> list[int]:
    """Return the picture size of each epoch."""
    sizes = []
    for phase in phases.split(","):
        size, _, epochs = phase.partition(":")
        if not (size.isdecimal() and epochs.isdecimal() and int(size) and int(epochs)):
            raise argparse.ArgumentTypeError(f"'{phase}' is not SIZE:EPOCHS")
        sizes += [int(size)] * int(epochs)
    return sizes


def load_weights(model: nn.Module, path: Path) -> None:
    """Read a checkpoint of the very same architecture and classes into a model."""
    try:
        model.load_state_dict(read_state_dict(path))
    except (ModelError, RuntimeError) as error:
        raise SystemExit(f"{path} cannot be loaded: {error}") from error


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name; under muon, what is no plain matrix is left to AdamW."""
    others = ("*dwconv*", "downsample_layers.0.*", "head.*") if "muon" in options.optimizer else ()
    try:
        return create_optimizer_v2(
            model, options.optimizer, lr=options.lr, weight_decay=options.weight_decay, fallback_list=others
        )
    except ValueError as error:
        raise SystemExit(f"--optimizer {options.optimizer}: {error}") from error


def augmentation(options: argparse.Namespace, size: int) -> Callable[[Image.Image], np.ndarray]:
    """Return timm's training transform without the normalisation, which is done by batch: uint8 (3, H, W)."""
    policy = options.auto_augment
    if policy and "-inc1" in policy and "-mmax" not in policy:
        policy += "-mmax9"  # at magnitude 10 timm posterizes to 0 bits, which Pillow 12 refuses in the middle of a run
    try:
        return create_transform(
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
        raise SystemExit(f"--auto-augment {options.auto_augment} is none that timm knows") from error


class Run:
    """One training run: everything that its state.pt holds, and the epochs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sizes: list[int] = options.phases
        kept, held_out, self.classes = split(options.data, options.holdout)
        self.check_steps(len(kept))
        augmentation(options, self.sizes[0])  # what it refuses is refused now
        self.epoch = 0
        self.curve: list[dict[str, float]] = []
        state = self.read_state()
        seed(options.seed, 0)
        try:
            self.device = torch.device(options.device)
            self.model = build_model(
                ROWS[options.architecture], num_classes=len(self.classes), drop_path_rate=options.drop_path
            ).to(self.device, memory_format=torch.channels_last)
        except (AssertionError, RuntimeError) as error:  # how torch says that there is no such device
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
        self.forward = torch.compile(self.model, dynamic=False) if options.compile else self.model
        self.teacher = self.load_teacher()
        if options.init and not state:
            load_weights(self.model, options.init)
        if state:
            self.model.load_state_dict(state["model"])
            self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.train, self.holdout = Decoded(kept), Decoded(held_out)

    def check_steps(self, pictures: int) -> None:
        """Find the steps of an epoch and refuse a run that is too short."""
        options = self.options
        self.steps = min(pictures // options.batch_size, options.max_steps or pictures)
        if not self.steps:
            raise SystemExit(f"{pictures} pictures do not fill one batch of {options.batch_size}")
        if options.warmup_steps >= self.steps * len(self.sizes):
            total = self.steps * len(self.sizes)
            raise SystemExit(f"--warmup-steps {options.warmup_steps} is not less than the run's {total} steps")

    def read_state(self) -> dict | None:
        """Take up the epoch and the curve of the run in the folder; return its tensors, None if there is no run."""
        options, folder = self.options, self.options.output
        described = {**vars(options), "data": str(options.data), "output": str(folder), "classes": self.classes}
        described |= {name: str(described[name]) for name in ("init", "teacher") if described[name]}
        state = None
        if (folder / STATE).exists():
            state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
            self.epoch, self.curve = state["epoch"], state["curve"]
            if (folder / OPTIONS).exists():
                self.check_same_run(json.loads((folder / OPTIONS).read_text()), described)
        self.described = json.dumps(described, indent=1) + "\n"
        return state

    def check_same_run(self, before: dict, now: dict) -> None:
        """Refuse to go on with options under which the state means something else."""
        if changed := [name for name in (*FIXED, "classes") if before.get(name) != now[name]]:
            raise SystemExit(f"{self.options.output} was begun with another {changed[0]}: name another folder")
        plan = ("phases", "decay_epochs")
        is_falling = self.epoch > len(before["phases"]) - before["decay_epochs"]
        if is_falling and any(before[name] != now[name] for name in plan):
            raise SystemExit("the learning rate is falling already: --phases and --decay-epochs can no longer change")

    def save(self) -> None:
        """Write options.json, state.pt and curve.csv, each whole or not at all."""
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
        write_atomically(self.options.output / OPTIONS, self.described.encode())
        write_atomically(self.options.output / STATE, binary.getvalue())
        write_atomically(self.options.output / CURVE, text.getvalue().encode())

    def load_teacher(self) -> nn.Module | None:
        """Return the network whose answers are learned, ready to run; None if there is none."""
        if not self.options.teacher:
            return None
        row = ROWS[self.options.teacher_architecture]
        teacher = build_model(row, num_classes=len(self.classes)).eval().requires_grad_(False)
        load_weights(teacher, self.options.teacher)
        teacher.to(self.device, memory_format=torch.channels_last)
        return torch.compile(teacher, dynamic=False) if self.options.compile else teacher

    @torch.no_grad()
    def taught(self, inputs: Tensor) -> Tensor:
        """Return the teacher's probabilities (N, classes) for normalised, mixed pictures."""
        with self.autocast():
            return self.teacher(inputs).float().softmax(1)

    def autocast(self) -> torch.autocast:
        """Return the context in which the model runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def train_epoch(self, size: int) -> float:
        """Train on every picture once at `size` pixels; return the mean loss."""
        options = self.options
        seed(options.seed, self.epoch + 1)
        self.train.transform = augmentation(options, size)
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
            inputs, soft = self.mixup(normalised(pictures, self.device), targets.to(self.device))
            if self.teacher is not None:
                soft = torch.lerp(soft, self.taught(inputs), options.distill)
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
        self.holdout.transform = create_transform(size, interpolation="bicubic", crop_pct=1.0, use_prefetcher=True)
        logits, targets = [], []
        for pictures, labels in DataLoader(self.holdout, self.options.batch_size):
            with self.autocast():
                logits.append(self.ema.module(normalised(pictures, self.device)).float())
            targets.append(labels.to(self.device))
        scores, answers = torch.cat(logits), torch.cat(targets)
        top1, top5 = accuracy(scores, answers, topk=(1, 5))
        return F.cross_entropy(scores, answers).item(), top1.item(), top5.item()

    def go(self) -> None:
        """Train the epochs that are left, then write the averaged weights and those of the last step."""
        while self.epoch < len(self.sizes):
            size, started = self.sizes[self.epoch], time.monotonic()
            loss = self.train_epoch(size)
            if not math.isfinite(loss):
                raise SystemExit(
                    f"epoch {self.epoch}: the loss is {loss}; go on from the epoch before with a lower --lr"
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


def seed(base: int, epoch: int) -> None:
    """Seed every generator that training draws from."""
    torch.manual_seed(base * 1_000_003 + epoch)
    np.random.seed((base * 1_000_003 + epoch) % 2**32)
    random.seed(base * 1_000_003 + epoch)


def main(argv: list[str] | None = None) -> None:
    """Train."""
    Run(arguments(argv)).go()


if __name__ == "__main__":
    main()
