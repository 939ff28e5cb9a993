"""Average checkpoints of one network that were fine-tuned from one another.

    python weights/average.py tiny-imagenet-200/train runs/mean.safetensors runs/c.safetensors runs/b.safetensors

Such networks lie in one basin of the loss, and their mean is better than each of them (Wortsman et al.,
https://arxiv.org/abs/2203.05482). Starting from the first checkpoint, the others are mixed in one by one, each with the
share that gives the lowest loss on the held-out pictures (at the temperature that calibrate.py would choose), which may
be 0; --shares sets them instead. Prints loss and top-1 of every candidate. Continue training from the result with
`train.py --init`, or finish it with `calibrate.py --weights`.
"""

import argparse
from pathlib import Path

import torch
from calibrate import compute_logits, describe, fit_temperature
from pictures import DecodedPictures, create_eval_transform, split
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from train import ANY_SIZE, ROWS, load_weights

from mfcli.files import write_atomically
from mfcli.models.metaformer import build_model

Weights = dict[str, Tensor]
STEPS = tuple(step / 10 for step in range(1, 8))
"""Shares to try."""


class Evaluator:
    """Measures weights of one network on the held-out pictures."""

    def __init__(self, options: argparse.Namespace) -> None:
        _, held_out, classes = split(options.data, options.holdout)
        self.model = build_model(ROWS[options.architecture], num_classes=len(classes)).eval()
        self.pictures = DecodedPictures.read(held_out, create_eval_transform(options.size, options.crop_pct))
        self.targets = torch.tensor(self.pictures.targets)

    def read(self, path: Path) -> Weights:
        """Return the weights of a checkpoint of this network."""
        load_weights(self.model, path)
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def measure_loss(self, weights: Weights, title: str) -> float:
        """Return the loss at the best temperature; print it and top-1 under a title."""
        self.model.load_state_dict(weights)
        logits = compute_logits(self.model, self.pictures)
        logits /= fit_temperature(logits, self.targets)
        print(f"{title}: {describe(logits, self.targets)}", flush=True)
        return F.cross_entropy(logits, self.targets).item()


def average_weights(all_weights: list[Weights], shares: list[float]) -> Weights:
    """Return the weighted mean of checkpoints."""
    return {
        name: sum((share * weights[name] for share, weights in zip(shares, all_weights, strict=True)), torch.zeros(()))
        for name in all_weights[0]
    }


def choose_shares(all_weights: list[Weights], evaluator: Evaluator) -> list[float]:
    """Return the shares with the lowest loss, found greedily, one checkpoint after the other."""
    shares = [1.0]
    least = evaluator.measure_loss(all_weights[0], "the first")
    for number in range(1, len(all_weights)):
        best = [*shares, 0.0]
        for step in STEPS:
            tried = [*(share * (1 - step) for share in shares), step]
            mean = average_weights(all_weights[: number + 1], tried)
            loss = evaluator.measure_loss(mean, f"{step:.1f} of number {number + 1}")
            if loss < least:
                least, best = loss, tried
        shares = best
    return shares


def main(argv: list[str] | None = None) -> None:
    """Choose the shares, print and write the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the training folder")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", help="one for each checkpoint, with a sum of 1")
    parser.add_argument("--architecture", default="convformer_t8", choices=ANY_SIZE, help="of all checkpoints")
    parser.add_argument("--holdout", type=int, default=25, help="as in their training")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--crop-pct", type=float, default=0.875)
    options = parser.parse_args(argv)
    if options.holdout < 1:
        parser.error(f"--holdout {options.holdout}: held-out pictures choose the shares")
    if options.shares and (len(options.shares) != len(options.checkpoints) or abs(sum(options.shares) - 1) > 1e-6):
        parser.error(f"--shares {options.shares} are not {len(options.checkpoints)} numbers with a sum of 1")
    evaluator = Evaluator(options)
    all_weights = [evaluator.read(path) for path in options.checkpoints]
    shares = options.shares or choose_shares(all_weights, evaluator)
    mean = average_weights(all_weights, shares)
    evaluator.measure_loss(mean, "the mean, of " + ", ".join(f"{share:.3f}" for share in shares))
    write_atomically(options.output, save({name: tensor.contiguous() for name, tensor in mean.items()}))


if __name__ == "__main__":
    main()
