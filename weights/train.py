"""Train a backbone of this package from scratch on a folder of class folders.

    python weights/train.py tiny-imagenet-200/train runs/one --phases 32:40,48:8,64:8 --precision bf16

Every phase is SIZE:EPOCHS: small pictures first, because they are four times as fast, the full size last. The learning
rate warms up, stays, and falls to zero over the last --decay-epochs. Some pictures of each class are held out of
training (--holdout) and tell after each epoch how good the averaged weights are; nothing else chooses anything.

The run's folder gets state.pt after each epoch, from which the same command goes on (a longer --phases continues a run
before its decay has begun), curve.csv, and at the end model.safetensors: the averaged weights under the paper's
parameter names. Augmentation, mixup, optimiser, schedule and averaging are timm's.
"""

import argparse
import csv
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import WSDLRScheduler
from timm.utils import ModelEmaV3, accuracy
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.datasets import ImageFolder

from mfcli.metaformer import build_model
from mfcli.variants import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD

STATE, CURVE, WEIGHTS = "state.pt", "curve.csv", "model.safetensors"
COLUMNS = ("epoch", "size", "lr", "train_loss", "holdout_loss", "holdout_top1", "holdout_top5", "seconds")

Samples = list[tuple[str, int]]
"""Paths and class indices."""


class Decoded(Dataset[tuple[Tensor, int]]):
    """The pictures of some files, decoded once and kept as uint8; `transform` is applied at each access."""

    def __init__(self, samples: Samples) -> None:
        self.pictures = [np.asarray(Image.open(path).convert("RGB")) for path, _ in samples]
        self.targets = [target for _, target in samples]
        self.transform = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.transform(Image.fromarray(self.pictures[index]))  # uint8 (3, H, W)
        return torch.from_numpy(np.asarray(picture)), self.targets[index]


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", type=Path, help="folder of class folders")
    add("output", type=Path, help="folder of this run")
    add("--architecture", default="convformer_t9", choices=sorted(ARCHITECTURES), help="row of mfcli.variants")
    add("--phases", default="32:40,48:8,64:8", help="SIZE:EPOCHS, in order")
    add("--decay-epochs", type=int, default=16, help="the learning rate falls to zero over the last so many epochs")
    add("--warmup-steps", type=int, default=500)
    add("--batch-size", type=int, default=256)
    add("--optimizer", default="muon", help="any of timm's")
    add("--lr", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--drop-path", type=float, default=0.05)
    add("--scale", type=float, default=0.3, help="least share of a picture's area that a random crop keeps")
    add("--color-jitter", type=float, default=0.3)
    add("--auto-augment", default=None, help="timm's string, for instance rand-m7-mstd0.5-inc1")
    add("--mixup", type=float, default=0.2, help="alpha of mixup")
    add("--cutmix", type=float, default=1.0, help="alpha of cutmix")
    add("--mixup-prob", type=float, default=0.3, help="share of the batches that are mixed")
    add("--mixup-off-epoch", type=int, default=None, help="from this epoch on (counted from 0), nothing is mixed")
    add("--smoothing", type=float, default=0.1)
    add("--ema", type=float, default=0.999)
    add("--holdout", type=int, default=25, help="pictures of each class that are not trained on")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--precision", default="fp32", choices=("fp32", "bf16"))
    add("--compile", action="store_true", help="torch.compile the training step's model")
    add("--workers", type=int, default=1, help="processes that augment")
    add("--max-steps", type=int, default=None, help="stop an epoch after so many steps: to try the script out")
    return parser.parse_args(argv)


def phase_sizes(phases: str) -> list[int]:
    """Return the picture size of each epoch."""
    sizes = []
    for phase in phases.split(","):
        size, epochs = map(int, phase.split(":"))
        sizes += [size] * epochs
    return sizes


def split(folder: Path, holdout: int) -> tuple[Samples, Samples, list[str]]:
    """Return training files, held-out files (evenly spaced in each class's sorted names) and class names."""
    listed = ImageFolder(folder)
    of_class: dict[int, Samples] = {}
    for sample in listed.samples:
        of_class.setdefault(sample[1], []).append(sample)
    held, kept = [], []
    for samples in of_class.values():
        chosen = {round(i * len(samples) / holdout) for i in range(holdout)} if holdout else set()
        held += [sample for i, sample in enumerate(samples) if i in chosen]
        kept += [sample for i, sample in enumerate(samples) if i not in chosen]
    return kept, held, listed.classes


def normalised(pictures: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return uint8 (N, 3, H, W) as the float32 that the model takes, on the device, channels last in memory."""
    pictures = pictures.to(device, non_blocking=True).float()
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)


class Run:
    """One training run: everything that its state.pt holds, and the epochs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.sizes = phase_sizes(options.phases)
        kept, held_out, classes = split(options.data, options.holdout)
        self.train, self.holdout = Decoded(kept), Decoded(held_out)
        self.steps = len(self.train) // options.batch_size
        if options.max_steps:
            self.steps = min(self.steps, options.max_steps)
        if not self.steps:
            raise SystemExit(f"{len(self.train)} pictures do not fill one batch of {options.batch_size}")
        seed(options.seed, 0)
        self.model = build_model(
            ARCHITECTURES[options.architecture], num_classes=len(classes), drop_path_rate=options.drop_path
        ).to(self.device, memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(
            self.model,
            options.optimizer,
            lr=options.lr,
            weight_decay=options.weight_decay,
            fallback_list=("*dwconv*", "downsample_layers.0.*", "head.*") if "muon" in options.optimizer else (),
        )
        self.ema = ModelEmaV3(self.model, options.ema, use_warmup=True, warmup_power=0.75)
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
            prob=options.mixup_prob,
            label_smoothing=options.smoothing,
            num_classes=len(classes),
        )
        self.forward = torch.compile(self.model) if options.compile else self.model
        self.epoch = 0
        self.curve: list[dict[str, float]] = []
        options.output.mkdir(parents=True, exist_ok=True)
        if (options.output / STATE).exists():
            self.load(torch.load(options.output / STATE, map_location=self.device, weights_only=True))

    def load(self, state: dict) -> None:
        """Go on from a state.pt."""
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.curve = state["epoch"], state["curve"]

    def save(self) -> None:
        """Write state.pt and curve.csv, each whole or not at all."""
        folder = self.options.output
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "curve": self.curve,
        }
        torch.save(state, folder / f"{STATE}.new")
        (folder / f"{STATE}.new").replace(folder / STATE)
        with (folder / CURVE).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(self.curve)

    def autocast(self) -> torch.autocast:
        """Return the context in which the model runs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def train_epoch(self, size: int) -> float:
        """Train on every picture once at `size` pixels; return the mean loss."""
        options = self.options
        seed(options.seed, self.epoch + 1)
        self.train.transform = create_transform(
            size,
            is_training=True,
            scale=(options.scale, 1.0),
            color_jitter=options.color_jitter,
            auto_augment=options.auto_augment,
            interpolation="random",
            use_prefetcher=True,  # uint8 out: the batch is normalised as one
        )
        loader = DataLoader(
            self.train,
            options.batch_size,
            sampler=RandomSampler(self.train, generator=torch.Generator().manual_seed(options.seed + self.epoch)),
            drop_last=True,
            num_workers=options.workers,
            worker_init_fn=seed_worker,
        )
        self.model.train()
        self.mixup.mixup_enabled = options.mixup_off_epoch is None or self.epoch < options.mixup_off_epoch
        loss_of = SoftTargetCrossEntropy()
        losses = []
        for step, (pictures, targets) in zip(range(self.steps), loader, strict=False):
            update = self.epoch * self.steps + step
            self.schedule.step_update(update)
            inputs, soft = self.mixup(normalised(pictures, self.device), targets.to(self.device))
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
        """Train the epochs that are left, then write the averaged weights."""
        while self.epoch < len(self.sizes):
            size, started = self.sizes[self.epoch], time.monotonic()
            loss = self.train_epoch(size)
            measured = self.evaluate(size)
            lr = self.optimizer.param_groups[0]["lr"]
            seconds = round(time.monotonic() - started, 1)
            self.curve.append(dict(zip(COLUMNS, (self.epoch, size, lr, loss, *measured, seconds), strict=True)))
            self.epoch += 1
            self.save()
            print(" ".join(f"{name} {value:.5g}" for name, value in self.curve[-1].items()), flush=True)
        weights = {name: tensor.float().cpu().contiguous() for name, tensor in self.ema.module.state_dict().items()}
        save_file(weights, self.options.output / WEIGHTS)


def seed(base: int, epoch: int) -> None:
    """Seed every generator that training draws from."""
    torch.manual_seed(base * 1_000_003 + epoch)
    np.random.seed((base * 1_000_003 + epoch) % 2**32)
    random.seed(base * 1_000_003 + epoch)


def seed_worker(_: int) -> None:
    """Seed a loader process's generators from what torch gave it."""
    drawn = torch.initial_seed()
    np.random.seed(drawn % 2**32)
    random.seed(drawn)


def main(argv: list[str] | None = None) -> None:
    """Train."""
    Run(arguments(argv)).go()


if __name__ == "__main__":
    main()
