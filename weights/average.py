"""Average checkpoints of one network that were trained on from one another, before a run goes on or after it.

    python weights/average.py tiny-imagenet-200/train runs/mean.safetensors runs/c.safetensors runs/b.safetensors

Such networks lie in one basin of the loss, and their mean is better than each of them (Wortsman et al.,
https://arxiv.org/abs/2203.05482). The first checkpoint is the one that the others are mixed into, one after the other,
each with the share under which the right classes of the held-out pictures are most likely (with the temperature of
calibrate.py, which comes after this), or not at all. --shares says them instead. Prints loss and top-1 on the held-out
pictures along the way. `train.py --init` goes on from the result; `calibrate.py --weights` makes it the checkpoint to
ship.
"""

import argparse
from pathlib import Path

import torch
from calibrate import described, logits_of, temperature
from pictures import Decoded, split
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F
from train import ANY_SIZE, ROWS, load_weights

from mfcli.files import write_atomically
from mfcli.models.metaformer import build_model

Weights = dict[str, Tensor]
STEPS = tuple(step / 10 for step in range(1, 8))
"""Shares that are tried."""


class Judge:
    """Tells how likely a network with given weights finds the right classes of the held-out pictures."""

    def __init__(self, options: argparse.Namespace) -> None:
        _, held_out, classes = split(options.data, options.holdout)
        self.model = build_model(ROWS[options.architecture], num_classes=len(classes)).eval()
        self.pictures = Decoded(held_out)
        self.targets = torch.tensor(self.pictures.targets)
        self.size, self.crop_pct = options.size, options.crop_pct

    def read(self, path: Path) -> Weights:
        """Return the weights of a checkpoint of this network."""
        load_weights(self.model, path)
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def loss(self, weights: Weights, what: str) -> float:
        """Return the loss at the best temperature; say it, and top-1."""
        self.model.load_state_dict(weights)
        logits = logits_of(self.model, self.pictures, self.size, self.crop_pct)
        logits /= temperature(logits, self.targets)
        print(f"{what}: {described(logits, self.targets)}", flush=True)
        return F.cross_entropy(logits, self.targets).item()


def mean(all_weights: list[Weights], shares: list[float]) -> Weights:
    """Return the sum of weights, each times its share."""
    return {
        name: sum((share * weights[name] for share, weights in zip(shares, all_weights, strict=True)), torch.zeros(()))
        for name in all_weights[0]
    }


def chosen_shares(all_weights: list[Weights], judge: Judge) -> list[float]:
    """Return the shares of the mean that the held-out pictures like best, found one checkpoint after the other."""
    shares = [1.0]
    least = judge.loss(all_weights[0], "the first")
    for number in range(1, len(all_weights)):
        best = [*shares, 0.0]
        for step in STEPS:
            tried = [*(share * (1 - step) for share in shares), step]
            loss = judge.loss(mean(all_weights[: number + 1], tried), f"{step:.1f} of number {number + 1}")
            if loss < least:
                least, best = loss, tried
        shares = best
    return shares


def main(argv: list[str] | None = None) -> None:
    """Print what was found and write the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that was trained on")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--shares", type=float, nargs="+", help="one for each checkpoint, 1 together")
    parser.add_argument("--architecture", default="convformer_t8", choices=ANY_SIZE, help="what they are")
    parser.add_argument("--holdout", type=int, default=25, help="as in their training")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--crop-pct", type=float, default=0.875)
    options = parser.parse_args(argv)
    if options.holdout < 1:
        parser.error(f"--holdout {options.holdout}: held-out pictures choose the shares")
    if options.shares and (len(options.shares) != len(options.checkpoints) or abs(sum(options.shares) - 1) > 1e-6):
        parser.error(f"--shares {options.shares} are not {len(options.checkpoints)} numbers with a sum of 1")
    judge = Judge(options)
    all_weights = [judge.read(path) for path in options.checkpoints]
    shares = options.shares or chosen_shares(all_weights, judge)
    found = mean(all_weights, shares)
    judge.loss(found, "the mean, of " + ", ".join(f"{share:.3f}" for share in shares))
    write_atomically(options.output, save({name: tensor.contiguous() for name, tensor in found.items()}))


if __name__ == "__main__":
    main()
