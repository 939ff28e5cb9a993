"""Finish a training run: choose the preprocessing, fold a temperature into the head, store the weights as float16.

    python weights/calibrate.py tiny-imagenet-200/train runs/one weights/convformer_t9_64.safetensors

Everything is decided on the pictures that training held out. The temperature is the one that makes the held-out
pictures' answers most likely (Guo et al., https://arxiv.org/abs/1706.04599); dividing the head's weight and bias by it
is the same as dividing the logits. crop_pct and interpolation go into the model's row in mfcli.variants by hand.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from train import WEIGHTS, Decoded, normalised, split

from mfcli.metaformer import build_model
from mfcli.variants import ARCHITECTURES

CROPS = (0.8, 0.875, 0.95, 1.0)
INTERPOLATIONS = ("bilinear", "bicubic")


@torch.inference_mode()
def logits_of(model: nn.Module, pictures: Decoded, size: int, crop_pct: float, interpolation: str) -> Tensor:
    """Return float32 logits (N, classes) of pictures that went through this transform."""
    pictures.transform = create_transform(size, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True)
    return torch.cat([model(normalised(batch)) for batch, _ in DataLoader(pictures, 256)])


def temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the number by which logits are divided to make the targets most likely."""
    log = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / log.exp(), targets)
        value.backward()
        return value

    optimizer.step(loss)
    return log.exp().item()


def main() -> None:
    """Print what was found and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that was trained on")
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("--architecture", default="convformer_t9", choices=sorted(ARCHITECTURES))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--holdout", type=int, default=25)
    options = parser.parse_args()
    _, samples, classes = split(options.data, options.holdout)
    held_out = Decoded(samples)
    model = build_model(ARCHITECTURES[options.architecture], num_classes=len(classes)).eval()
    weights = load_file(options.run / WEIGHTS)
    model.load_state_dict(weights)
    targets = torch.tensor(held_out.targets)
    found = []
    for crop_pct in CROPS:
        for interpolation in INTERPOLATIONS:
            logits = logits_of(model, held_out, options.size, crop_pct, interpolation)
            top1 = 100 * (logits.argmax(1) == targets).float().mean().item()
            print(f"crop_pct {crop_pct} {interpolation:8} top1 {top1:.2f} loss {F.cross_entropy(logits, targets):.4f}")
            found.append((top1, crop_pct, interpolation, logits))
    top1, crop_pct, interpolation, logits = max(found, key=lambda entry: entry[:2])
    scale = temperature(logits, targets)
    print(f"chosen: crop_pct {crop_pct} {interpolation}, top1 {top1:.2f}, temperature {scale:.4f}")
    for name in ("head.weight", "head.bias"):
        weights[name] = weights[name] / scale
    save_file({name: tensor.half() for name, tensor in weights.items()}, options.output)


if __name__ == "__main__":
    main()
