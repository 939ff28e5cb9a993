"""Finish a training run: choose crop_pct, fold a temperature into the head, store the weights as float16.

    python weights/calibrate.py tiny-imagenet-200/train runs/one weights/convformer_t8_64.safetensors

Everything is decided on the pictures that training held out. crop_pct is the one under which the right classes are most
likely, each with its own temperature; it goes into the model's row in the registry by hand. (Pictures of 64x64 cannot
say which interpolation is best for larger ones: at crop_pct 1 they are not resized at all. It stays bicubic, as for
every other row.) The temperature is the one that makes the right classes most likely (Guo et al.,
https://arxiv.org/abs/1706.04599); dividing the last layer's weight and bias by it is the same as dividing the logits.
Class names go into classes.txt beside the checkpoint, in head order.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from evaluate import calibration_error
from pictures import Decoded, normalised, split
from PIL import Image
from safetensors.torch import save
from timm.data import create_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from train import OPTIONS, ROWS, WEIGHTS, load_weights

from mfcli.files import write_atomically
from mfcli.models.metaformer import build_model

CROPS = (0.8, 0.875, 0.95, 1.0)


def evaluation(size: int, crop_pct: float) -> Callable[[Image.Image], np.ndarray]:
    """Return timm's evaluation transform without the normalisation: uint8 (3, H, W)."""
    return create_transform(size, crop_pct=crop_pct, interpolation="bicubic", use_prefetcher=True)


@torch.no_grad()
def logits_of(model: nn.Module, pictures: Decoded, size: int, crop_pct: float) -> Tensor:
    """Return float32 logits (N, classes) of pictures that went through this transform."""
    pictures.transform = evaluation(size, crop_pct)
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


def described(logits: Tensor, targets: Tensor) -> str:
    """Return top-1, loss and calibration error in words."""
    probs, answers = logits.softmax(1).max(1)
    right = answers == targets
    error = calibration_error(probs.tolist(), right.tolist())
    loss = F.cross_entropy(logits, targets)
    return f"top-1 {100 * right.float().mean():.2f} %, loss {loss:.4f}, calibration error {error:.4f}"


def main(argv: list[str] | None = None) -> None:
    """Print what was found and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that was trained on")
    parser.add_argument("run", type=Path, help="the folder of the finished run")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("--weights", type=Path, help="a checkpoint of average.py instead of the run's own")
    parser.add_argument("--size", type=int, help="pixels of the pictures it will see, instead of the run's last size")
    options = parser.parse_args(argv)
    for name in (WEIGHTS, OPTIONS):
        if not (options.run / name).is_file():
            parser.error(f"{options.run} holds no finished run: {name} is missing")
    trained = json.loads((options.run / OPTIONS).read_text())
    if trained["architecture"] not in ROWS:
        parser.error(f"{options.run} trained {trained['architecture']}, which is no row of mfcli.models.registry")
    size = options.size or trained["phases"][-1]
    _, samples, classes = split(options.data, trained["holdout"])
    if not samples or classes != trained["classes"]:
        parser.error(f"{options.data} is not what {options.run} was trained on, or nothing of it was held out")
    model = build_model(ROWS[trained["architecture"]], num_classes=len(classes)).eval()
    load_weights(model, options.weights or options.run / WEIGHTS)
    held_out = Decoded(samples)
    targets = torch.tensor(held_out.targets)
    found = {crop_pct: logits_of(model, held_out, size, crop_pct) for crop_pct in CROPS}
    scales = {crop_pct: temperature(logits, targets) for crop_pct, logits in found.items()}
    losses = {crop_pct: F.cross_entropy(found[crop_pct] / scale, targets).item() for crop_pct, scale in scales.items()}
    for crop_pct, scale in scales.items():
        print(f"crop_pct {crop_pct}, temperature {scale:.4f}: {described(found[crop_pct] / scale, targets)}")
    crop_pct = min(losses, key=losses.__getitem__)
    scale = scales[crop_pct]
    weights = model.state_dict()
    layer = "head.fc2" if "head.fc2.weight" in weights else "head"
    for name in (f"{layer}.weight", f"{layer}.bias"):
        weights[name] = weights[name] / scale
    halves = {name: tensor.half() for name, tensor in weights.items()}
    model.load_state_dict({name: tensor.float() for name, tensor in halves.items()})
    print(f"chosen: crop_pct {crop_pct}, temperature {scale:.4f}")
    print(f"as float16: {described(logits_of(model, held_out, size, crop_pct), targets)}")
    write_atomically(options.output, save(halves))
    write_atomically(options.output.parent / "classes.txt", "".join(f"{name}\n" for name in classes).encode())


if __name__ == "__main__":
    main()
