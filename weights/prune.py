"""Prune a trained network to a smaller row of the same family, as initial weights for training that row.

    python weights/prune.py tiny-imagenet-200/train runs/wide/model.safetensors runs/start.safetensors

Where the smaller row has fewer blocks in a stage, blocks are removed one by one, each time the one whose removal gives
the lowest loss on the held-out pictures. Where its channel MLPs are narrower, each keeps the hidden channels that
contribute most to its output (mean square of the activation times squared norm of the outgoing weights), and its second
layer is refitted by least squares to the output of the whole MLP on training pictures. Prints loss and top-1 of every
candidate. Continue training from the result with `train.py --init`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from calibrate import compute_logits, describe
from pictures import DecodedPictures, create_eval_transform, split
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from train import ANY_SIZE, ROWS, load_weights

from mfcli.files import write_atomically
from mfcli.models.metaformer import MetaFormer, MetaFormerBlock, Mlp, build_model
from mfcli.models.registry import Architecture

FITTED_ON = 2048
"""Number of training pictures whose activations choose the channels and fit the second layer."""
RIDGE = 1e-3
"""Regularisation of the least squares: this times the mean square activation is added to the diagonal."""


def drop_blocks(model: MetaFormer, depths: tuple[int, ...], pictures: DecodedPictures) -> None:
    """Remove blocks until the stages have `depths` blocks.

    Args:
        model: loses the blocks in place.
        depths: blocks of each stage to keep.
        pictures: held-out pictures, which choose the blocks.
    """
    targets = torch.tensor(pictures.targets)
    for number, depth in enumerate(depths):
        while len(stage := list(model.stages[number].children())) > depth:
            losses = []
            for without in range(len(stage)):
                model.stages[number] = nn.Sequential(*stage[:without], *stage[without + 1 :])
                logits = compute_logits(model, pictures)
                losses.append(F.cross_entropy(logits, targets).item())
                print(f"without block {without} of stage {number}: {describe(logits, targets)}", flush=True)
            least_missed = losses.index(min(losses))
            model.stages[number] = nn.Sequential(*stage[:least_missed], *stage[least_missed + 1 :])


def narrow_mlps(model: MetaFormer, mlp_ratio: int, pictures: DecodedPictures) -> None:
    """Narrow every channel MLP to `mlp_ratio` times its block's channels.

    Args:
        model: gets the narrower MLPs in place.
        mlp_ratio: hidden channels in multiples of the input's.
        pictures: training pictures, whose activations choose the channels.
    """
    for block in [module for module in model.modules() if isinstance(module, MetaFormerBlock)]:
        mlp = block.mlp
        if isinstance(mlp, Mlp) and mlp_ratio * mlp.fc1.in_features < mlp.fc1.out_features:
            block.mlp = narrow_mlp(mlp, mlp_ratio, measure_hidden_moments(model, mlp, pictures))


def measure_hidden_moments(model: MetaFormer, mlp: Mlp, pictures: DecodedPictures) -> Tensor:
    """Return the mean product of each pair of hidden channels after the activation: float64 (hidden, hidden).

    Args:
        model: the whole network.
        mlp: one of its MLPs.
        pictures: the network's input.
    """
    hidden = mlp.fc1.out_features
    total, count = torch.zeros(hidden, hidden, dtype=torch.float64), 0

    def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal count
        rows = inputs[0].reshape(-1, hidden)
        total.add_((rows.T @ rows).double())
        count += len(rows)

    hook = mlp.fc2.register_forward_pre_hook(add)
    compute_logits(model, pictures)
    hook.remove()
    return total / count


def narrow_mlp(mlp: Mlp, mlp_ratio: int, moments: Tensor) -> Mlp:
    """Return a narrower MLP with the most important hidden channels of `mlp` and a refitted second layer.

    Args:
        mlp: without biases, as in every family but the first PoolFormer.
        mlp_ratio: hidden channels of the new one, in multiples of its input's.
        moments: mean products of `mlp`'s hidden channels, float64 (hidden, hidden).
    """
    small = Mlp(mlp.fc1.in_features, mlp_ratio)
    small.act = mlp.act
    importance = moments.diagonal() * mlp.fc2.weight.double().square().sum(0)
    kept = importance.topk(small.fc1.out_features).indices.sort().values
    among = moments[kept][:, kept]
    among = among + RIDGE * among.diagonal().mean() * torch.eye(len(kept), dtype=among.dtype)
    fitted = torch.linalg.solve(among, moments[kept] @ mlp.fc2.weight.double().T)  # (hidden, dim)
    with torch.no_grad():
        small.fc1.weight.copy_(mlp.fc1.weight[kept])
        small.fc2.weight.copy_(fitted.T)
    return small.eval()


def is_reduction_of(small: Architecture, large: Architecture) -> bool:
    """Whether `small` is `large` with fewer blocks or narrower MLPs, and the same otherwise."""
    same = replace(large, name=small.name, depths=small.depths, mlp_ratio=small.mlp_ratio) == small
    fewer = all(after <= before for after, before in zip(small.depths, large.depths, strict=True))
    return same and fewer and small.mlp_ratio <= large.mlp_ratio


def main(argv: list[str] | None = None) -> None:
    """Prune, print and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the training folder")
    parser.add_argument("weights", type=Path, help="of the trained network")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("--architecture", default="convformer_t9", choices=ANY_SIZE, help="of the trained network")
    parser.add_argument("--to", default="convformer_t8", choices=ANY_SIZE, help="the smaller row")
    parser.add_argument("--holdout", type=int, default=25, help="as in its training")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--crop-pct", type=float, default=0.95)
    options = parser.parse_args(argv)
    before, after = ROWS[options.architecture], ROWS[options.to]
    if not is_reduction_of(after, before):
        parser.error(f"{after.name} is not {before.name} with fewer blocks or narrower MLPs")
    if options.holdout < 1:
        parser.error(f"--holdout {options.holdout}: held-out pictures choose the blocks")
    kept, held, classes = split(options.data, options.holdout)
    model = build_model(before, num_classes=len(classes)).eval()
    load_weights(model, options.weights)
    transform = create_eval_transform(options.size, options.crop_pct)
    held_out = DecodedPictures.read(held, transform)
    drop_blocks(model, after.depths, held_out)
    narrow_mlps(model, after.mlp_ratio, DecodedPictures.read(kept[:: max(len(kept) // FITTED_ON, 1)], transform))
    logits = compute_logits(model, held_out)
    print(f"{options.to}: {describe(logits, torch.tensor(held_out.targets))}")
    small = build_model(after, num_classes=len(classes))
    small.load_state_dict(model.state_dict())  # strict: the model must be exactly that row
    write_atomically(options.output, save({name: tensor.contiguous() for name, tensor in small.state_dict().items()}))


if __name__ == "__main__":
    main()
