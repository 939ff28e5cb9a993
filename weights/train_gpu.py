"""Train a bundled model on one GPU, from scratch to the artifact: a teacher, a student distilled from it, calibration.

    python weights/shards.py tiny-imagenet-200/train shards
    python weights/train_gpu.py shards runs/gpu --minutes 8 8

Pictures are on the GPU as uint8, and are augmented there in whole batches (augment.py). Both networks train for a given
time, not for a number of passes: learning rate, picture size and augmentation follow the share of the time that is used
(Izsak et al., https://arxiv.org/abs/2104.07705), so that a slower GPU gives fewer passes but a finished training. The
steps that compile are not counted. Every few minutes a state is written, from which the same command continues; with
--stop-after it stops by itself. It has not run on a GPU yet: the defaults are from the literature and from train.py.

- Teacher: convformer_s18 with the stem and the 3x3 kernels of the small networks, 24.7 M parameters.
- Student: the wide network of train.py, 5.3 M parameters. It learns the teacher's probabilities for the same augmented
  and mixed pictures (Beyer et al., https://arxiv.org/abs/2106.05237), at a temperature (Hinton et al.,
  https://arxiv.org/abs/1503.02531), and the labels with the rest of the weight.
- Sizes: small pictures first (Tan and Le, https://arxiv.org/abs/2104.00298), and 48 pixels suit objects at 64 pixels
  that random crops enlarge (Touvron et al., https://arxiv.org/abs/1906.06423).
- Weight decay, smoothing, mixup, cutmix, erasing: those of the paper's code (https://github.com/sail-sg/metaformer).
  Stochastic depth is the same in all blocks, as in DeiT III (https://arxiv.org/abs/2204.07118): blocks of one shape are
  then compiled once.
- Learning rate: 2.5e-3 for batches of 512 in train.py, times the square root of 2 for 1024 (Malladi et al.,
  https://arxiv.org/abs/2205.10287); linear warm-up, then a cosine to zero.

In the output folder, each network's folder gets curve.csv, state.pt and model.safetensors; beside them are the
student's checkpoint, classes.txt and the artifact. Randomness is not repeatable: it depends on the time.
"""

import argparse
import csv
import io
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augment import change_colours, crop, erase
from build import build
from calibrate import finish
from pictures import DecodedPictures, create_eval_transform, normalise
from safetensors.torch import save
from shards import PackedPictures, read_shards
from timm.data import Mixup
from timm.layers import DropPath
from timm.utils import ModelEmaV3, accuracy
from torch import Tensor, nn
from torch.nn import functional as F
from train import CURVE, STATE, WEIGHTS, WIDE, load_weights, make_optimizer, parse_phases

from mfcli.files import write_atomically
from mfcli.models.metaformer import MetaFormer, MetaFormerBlock, build_model
from mfcli.models.registry import ARCHITECTURES, Architecture, find_variant

UNCOUNTED = 3
"""First steps at each size, which compile or choose kernels."""
COLUMNS = ("step", "passes", "minutes", "size", "lr", "train_loss", "holdout_loss", "holdout_top1", "images_per_s")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        name: of its folder.
        architecture: the network.
        drop_path: stochastic depth, the same in all blocks.
        erasing: share of the pictures that lose a rectangle.
        colours: strength of the jitter.
        turns: largest rotation in degrees.
    """

    name: str
    architecture: Architecture
    drop_path: float
    erasing: float
    colours: float
    turns: float


SMALL_PICTURES = {"stem_stride": 2, "stem_padding": 3, "kernel_size": 3}
TEACHER = replace(ARCHITECTURES["convformer_s18"], name="convformer_s18_small_pictures", **SMALL_PICTURES)  # type: ignore[arg-type]
RECIPES = (
    Recipe("teacher", TEACHER, drop_path=0.15, erasing=0.25, colours=0.3, turns=20),
    Recipe("student", WIDE, drop_path=0.0, erasing=0.0, colours=0.3, turns=20),
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("shards", type=Path, help="folder that shards.py wrote")
    add("output", type=Path, help="folder of this run")
    add("--minutes", type=float, nargs=2, default=[8.0, 8.0], metavar=("TEACHER", "STUDENT"), help="training times")
    add(
        "--stop-after",
        type=float,
        default=math.inf,
        metavar="MINUTES",
        help="save and stop; the same command continues",
    )
    add("--save-every", type=float, default=2.0, metavar="MINUTES")
    add("--sizes", type=parse_phases, default="48:7,64:3", help="SIZE:SHARE of the time, in order")
    add("--batch-size", type=int, default=1024)
    add("--optimizer", type=str.lower, default="muon", help="any of timm's")
    add("--lr", type=float, default=3.5e-3)
    add("--warmup", type=float, default=0.05, help="share of the time in which the learning rate rises")
    add("--weight-decay", type=float, default=0.05)
    add("--scale", type=float, default=0.25, help="minimum share of the area in a random crop")
    add("--mixup", type=float, default=0.8, help="alpha of mixup")
    add("--cutmix", type=float, default=1.0, help="alpha of cutmix")
    add("--unmixed", type=float, default=0.1, help="last share of the time, without mixup and cutmix")
    add("--smoothing", type=float, default=0.1)
    add(
        "--distill", type=float, default=0.9, help="weight of the teacher in the student's loss; the rest is the labels"
    )
    add("--temperature", type=float, default=1.0, help="divides the logits of teacher and student")
    add("--ema", type=float, default=0.998, help="maximum decay of the moving average of the weights")
    add("--seed", type=int, default=0)
    add("--device", default="cuda")
    add("--precision", default="bf16", choices=("fp32", "bf16"))
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile the blocks")
    options = parser.parse_args(argv)
    if options.batch_size < 2 or options.batch_size % 2:
        parser.error(f"--batch-size {options.batch_size} is not even: mixup pairs pictures")
    if min(options.minutes) <= 0:
        parser.error("--minutes are not positive")
    return options


def prepare_network(architecture: Architecture, classes: int, drop_path: float, device: torch.device) -> MetaFormer:
    """Return a network with random weights and the same stochastic depth in all blocks."""
    model = build_model(architecture, num_classes=classes)
    for block in find_blocks(model):
        block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
    model.to(device)
    model.to(memory_format=torch.channels_last)
    return model


def find_blocks(model: nn.Module) -> list[MetaFormerBlock]:
    """Return the blocks of a network."""
    return [module for module in model.modules() if isinstance(module, MetaFormerBlock)]


def distill(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return the mean KL divergence of softened probabilities from the teacher's, times the squared temperature.

    Args:
        logits: the student's, (N, classes).
        taught: the teacher's.
        temperature: divides both.
    """
    ours, theirs = ((values / temperature).log_softmax(1) for values in (logits, taught))
    return F.kl_div(ours, theirs, log_target=True, reduction="batchmean") * temperature**2


class Run:
    """The training of one network: what its state.pt holds, and the loop."""

    def __init__(
        self,
        recipe: Recipe,
        minutes: float,
        data: PackedPictures,
        options: argparse.Namespace,
        teacher: nn.Module | None,
    ) -> None:
        self.recipe, self.options, self.data, self.teacher = recipe, options, data, teacher
        self.folder = options.output / recipe.name
        self.device = torch.device(options.device)
        self.train = torch.nonzero(~data.held_out).flatten().to(self.device)
        self.batches = len(self.train) // options.batch_size
        if not self.batches:
            raise SystemExit(f"{len(self.train)} pictures do not fill one batch of {options.batch_size}")
        self.budget_s = 60 * minutes
        self.seconds, self.step = 0.0, 0
        self.steps_at: dict[int, int] = {}
        self.curve: list[dict[str, float]] = []
        self.losses: list[Tensor] = []
        self.order: list[Tensor] = []
        self.model = prepare_network(recipe.architecture, len(data.classes), recipe.drop_path, self.device)
        self.optimizer = make_optimizer(self.model, options)
        self.ema = ModelEmaV3(self.model, options.ema, use_warmup=True, warmup_power=0.75)
        self.mixup = Mixup(
            options.mixup, options.cutmix, label_smoothing=options.smoothing, num_classes=len(data.classes)
        )
        self.load_state()
        for network in (self.model, self.teacher):
            if options.compile and network is not None:
                compile_blocks(network)

    @property
    def progress(self) -> float:
        """The share of the time that is used, at most 1."""
        return min(self.seconds / self.budget_s, 1.0)

    @property
    def size(self) -> int:
        """The present size of the pictures."""
        sizes: list[int] = self.options.sizes
        return sizes[min(int(self.progress * len(sizes)), len(sizes) - 1)]

    @property
    def lr(self) -> float:
        """The present learning rate."""
        warmup, progress = self.options.warmup, self.progress
        if progress < warmup:
            return float(self.options.lr * max(progress / warmup, 0.01))
        return float(self.options.lr * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2)

    def load_state(self) -> None:
        """Continue the run in the folder, if there is one."""
        if not (self.folder / STATE).exists():
            return
        state = torch.load(self.folder / STATE, map_location=self.device, weights_only=True)
        if state["fixed"] != self.fixed:
            raise SystemExit(f"{self.folder} was started with other options; use another folder")
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.step, self.curve = state["seconds"], state["step"], state["curve"]

    @property
    def fixed(self) -> dict[str, Any]:
        """The options on which the state depends."""
        names = ("batch_size", "optimizer", "lr", "weight_decay", "mixup", "cutmix", "distill", "temperature", "seed")
        return {"network": self.recipe.architecture.name} | {name: getattr(self.options, name) for name in names}

    def save(self) -> None:
        """Measure the averaged weights on the held-out pictures; write state.pt and curve.csv."""
        self.log()
        state = {
            "fixed": self.fixed,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "step": self.step,
            "curve": self.curve,
        }
        binary, text = io.BytesIO(), io.StringIO()
        torch.save(state, binary)
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.curve)
        write_atomically(self.folder / STATE, binary.getvalue())
        write_atomically(self.folder / CURVE, text.getvalue().encode())

    def log(self) -> None:
        """Add a row to the curve and print it."""
        loss = torch.stack(self.losses).mean().item() if self.losses else math.nan
        if self.losses and not math.isfinite(loss):
            raise SystemExit(f"the loss is {loss}: continue from the last state with a lower --lr")
        since = self.curve[-1] if self.curve else {"step": 0, "minutes": 0.0}
        minutes = self.seconds / 60
        seen = (self.step - since["step"]) * self.options.batch_size
        rate = seen / (60 * (minutes - since["minutes"])) if minutes > since["minutes"] else math.nan
        values = (self.step, self.step / self.batches, minutes, self.size, self.lr, loss, *self.evaluate(), rate)
        self.curve.append(dict(zip(COLUMNS, values, strict=True)))
        self.losses = []
        print(self.recipe.name, *(f"{name} {value:.5g}" for name, value in self.curve[-1].items()), flush=True)

    @torch.inference_mode()
    def evaluate(self) -> tuple[float, float]:
        """Return loss and top-1 (percent) of the averaged weights on the held-out pictures at their full size."""
        if not self.data.held_out.any():
            return math.nan, math.nan
        pictures, targets = (values[self.data.held_out] for values in (self.data.pictures, self.data.targets))
        with self.autocast():
            batches = pictures.split(self.options.batch_size)
            logits = torch.cat([self.ema.module(normalise(batch, self.device)).float() for batch in batches])
        targets = targets.to(self.device)
        return F.cross_entropy(logits, targets).item(), accuracy(logits, targets)[0].item()

    def autocast(self) -> torch.autocast:
        """Return the context for forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def draw_batch(self) -> tuple[Tensor, Tensor]:
        """Return augmented pictures of the present size, as the model's input, and soft targets (N, classes)."""
        if not self.order:
            order = self.train[torch.randperm(len(self.train), device=self.device)]
            self.order = list(order[: self.batches * self.options.batch_size].split(self.options.batch_size))
        chosen, recipe = self.order.pop(), self.recipe
        pictures = crop(self.data.pictures[chosen], self.size, self.options.scale, recipe.turns, 0.2)
        pictures = change_colours(pictures, recipe.colours)
        if recipe.erasing:
            pictures = erase(pictures, recipe.erasing, 255 * torch.rand_like(pictures))
        self.mixup.mixup_enabled = self.progress < 1 - self.options.unmixed
        inputs, soft = self.mixup(normalise(pictures, self.device), self.data.targets[chosen])
        return inputs, soft

    def take_step(self) -> None:
        """Train on one batch."""
        inputs, soft = self.draw_batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        with self.autocast():
            logits = self.model(inputs)
        loss = -(soft * logits.float().log_softmax(1)).sum(1).mean()
        if self.teacher is not None:
            with self.autocast(), torch.no_grad():
                taught = self.teacher(inputs)
            divergence = distill(logits.float(), taught.float(), self.options.temperature)
            loss = torch.lerp(loss, divergence, self.options.distill)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.model, self.step)
        self.losses.append(loss.detach())
        self.step += 1

    def run(self, stop_at: float) -> bool:
        """Train until the time is used; False if the clock reaches `stop_at` before that."""
        saved = time.monotonic()
        while self.progress < 1:
            started, size = time.monotonic(), self.size
            if started >= stop_at:
                self.save()
                return False
            if started - saved >= 60 * self.options.save_every:
                self.save()
                saved = started = time.monotonic()
            self.take_step()
            self.steps_at[size] = self.steps_at.get(size, 0) + 1
            if self.steps_at[size] > UNCOUNTED:
                self.seconds += time.monotonic() - started
            elif self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.save()
        weights = {name: tensor.float().cpu().contiguous() for name, tensor in self.ema.module.state_dict().items()}
        write_atomically(self.folder / WEIGHTS, save(weights))
        return True


def compile_blocks(model: nn.Module) -> None:
    """Compile the blocks in place, each shape once: a fraction of the time that the whole network takes."""
    torch._dynamo.config.recompile_limit = 64  # shapes of both networks, at every size, with and without gradients
    for block in find_blocks(model):
        block.compile(dynamic=False)


def train(options: argparse.Namespace, data: PackedPictures, stop_at: float) -> nn.Module | None:
    """Train what is not finished; return the last network, or None if the clock reached `stop_at` before."""
    model: nn.Module | None = None
    for recipe, minutes in zip(RECIPES, options.minutes, strict=True):
        weights = options.output / recipe.name / WEIGHTS
        if not weights.exists() and not Run(recipe, minutes, data, options, model).run(stop_at):
            return None
        model = prepare_network(recipe.architecture, len(data.classes), 0.0, torch.device(options.device))
        load_weights(model.eval().requires_grad_(False), weights)
    return model


def main(argv: list[str] | None = None) -> None:
    """Train, calibrate and build, or continue."""
    options = parse_arguments(argv)
    stop_at = time.monotonic() + 60 * options.stop_after
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    packed = read_shards(options.shards)
    try:
        data = replace(packed, pictures=packed.pictures.to(options.device), targets=packed.targets.to(options.device))
    except (AssertionError, RuntimeError) as error:  # torch raises either for an unknown device
        raise SystemExit(f"--device {options.device}: {error}") from error
    if (model := train(options, data, stop_at)) is None:
        print("stopped: the same command continues")
        return
    student, size = RECIPES[-1].architecture, packed.pictures.shape[-1]
    held_out = list(packed.pictures[packed.held_out].permute(0, 2, 3, 1).numpy())
    pictures = DecodedPictures(held_out, packed.targets[packed.held_out].tolist(), create_eval_transform(size, 1.0))
    checkpoint = options.output / f"{student.name}_{size}.safetensors"
    crop_pct = finish(model, pictures, size, packed.classes, checkpoint)
    row = find_variant("bundled").with_input_size(size, size)
    name, classes = checkpoint.stem, len(packed.classes)
    build(replace(row, name=name, architecture=student, crop_pct=crop_pct, num_classes=classes), checkpoint)
    print(f"built {checkpoint.with_suffix('.onnx')}")


if __name__ == "__main__":
    main()
