"""Cut a trained network down to a smaller row of the same family, as a start for training that row.

    python weights/prune.py tiny-imagenet-200/train runs/wide/model.safetensors runs/start.safetensors

Where the smaller row has fewer blocks in a stage, those go without which the right classes of the held-out pictures
stay most likely, one after the other. Where its channel MLPs are narrower, each keeps the hidden channels that
contribute most to its output (mean square of the activation times squared length of the outgoing weights), and its
second layer is fitted anew, by least squares, to what the whole MLP gave; activations are those of training pictures.
Prints loss and top-1 on the held-out pictures along the way. `train.py --init` goes on from the result.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from calibrate import described, logits_of
from pictures import Decoded, split
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from train import ANY_SIZE, ROWS, load_weights

from mfcli.files import write_atomically
from mfcli.models.metaformer import MetaFormer, Mlp, build_model
from mfcli.models.registry import Architecture

FITTED_ON = 2048
"""Training pictures whose activations choose and fit."""
RIDGE = 1e-3
"""Share of the mean square activation that is added to the diagonal of the least squares."""


def drop_blocks(model: MetaFormer, depths: tuple[int, ...], pictures: Decoded, size: int, crop_pct: float) -> None:
    """Take blocks out of the stages until they are `depths` long."""
    targets = torch.tensor(pictures.targets)
    for number, depth in enumerate(depths):
        while len(stage := model.stages[number]) > depth:
            losses = []
            for without in range(len(stage)):
                model.stages[number] = nn.Sequential(*stage[:without], *stage[without + 1 :])
                logits = logits_of(model, pictures, size, crop_pct)
                losses.append(F.cross_entropy(logits, targets).item())
                print(f"without block {without} of stage {number}: {described(logits, targets)}", flush=True)
            least_missed = losses.index(min(losses))
            model.stages[number] = nn.Sequential(*stage[:least_missed], *stage[least_missed + 1 :])


def narrow_mlps(model: MetaFormer, mlp_ratio: int, pictures: Decoded, size: int, crop_pct: float) -> None:
    """Narrow every channel MLP to `mlp_ratio` times its block's channels."""
    for stage in model.stages:
        for block in stage:
            if mlp_ratio * block.mlp.fc1.in_features < block.mlp.fc1.out_features:
                moments = hidden_moments(model, block.mlp, pictures, size, crop_pct)
                block.mlp = narrowed(block.mlp, mlp_ratio, moments)


def hidden_moments(model: MetaFormer, mlp: Mlp, pictures: Decoded, size: int, crop_pct: float) -> Tensor:
    """Return the mean product of each pair of hidden channels after the activation: float64 (hidden, hidden)."""
    hidden = mlp.fc1.out_features
    total, count = torch.zeros(hidden, hidden, dtype=torch.float64), 0

    def add(_: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal count
        rows = inputs[0].reshape(-1, hidden)
        total.add_((rows.T @ rows).double())
        count += len(rows)

    hook = mlp.fc2.register_forward_pre_hook(add)
    logits_of(model, pictures, size, crop_pct)
    hook.remove()
    return total / count


def narrowed(mlp: Mlp, mlp_ratio: int, moments: Tensor) -> Mlp:
    """Return a narrower MLP: the most useful hidden channels of another, its second layer fitted to the other's.

    Args:
        mlp: an MLP without biases, as all are but the first PoolFormer's.
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


def is_cut_of(small: Architecture, large: Architecture) -> bool:
    """Whether one row is the other with fewer blocks or narrower MLPs and nothing else."""
    same = replace(large, name=small.name, depths=small.depths, mlp_ratio=small.mlp_ratio) == small
    fewer = all(after <= before for after, before in zip(small.depths, large.depths, strict=True))
    return same and fewer and small.mlp_ratio <= large.mlp_ratio


def main(argv: list[str] | None = None) -> None:
    """Print what was found and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that was trained on")
    parser.add_argument("weights", type=Path, help="the trained network")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("--architecture", default="convformer_t9", choices=ANY_SIZE, help="what it is")
    parser.add_argument("--to", default="convformer_t8", choices=ANY_SIZE, help="what it becomes")
    parser.add_argument("--holdout", type=int, default=25, help="as in its training")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--crop-pct", type=float, default=0.95)
    options = parser.parse_args(argv)
    before, after = ROWS[options.architecture], ROWS[options.to]
    if not is_cut_of(after, before):
        parser.error(f"{after.name} is not {before.name} with fewer blocks or narrower MLPs")
    if options.holdout < 1:
        parser.error(f"--holdout {options.holdout}: held-out pictures choose what goes")
    kept, held, classes = split(options.data, options.holdout)
    model = build_model(before, num_classes=len(classes)).eval()
    load_weights(model, options.weights)
    held_out, fitted_on = Decoded(held), Decoded(kept[:: max(len(kept) // FITTED_ON, 1)])
    drop_blocks(model, after.depths, held_out, options.size, options.crop_pct)
    narrow_mlps(model, after.mlp_ratio, fitted_on, options.size, options.crop_pct)
    logits = logits_of(model, held_out, options.size, options.crop_pct)
    print(f"{options.to}: {described(logits, torch.tensor(held_out.targets))}")
    small = build_model(after, num_classes=len(classes))
    small.load_state_dict(model.state_dict())  # strict: it is exactly that row now
    write_atomically(options.output, save({name: tensor.contiguous() for name, tensor in small.state_dict().items()}))


if __name__ == "__main__":
    main()
