"""Finish a training run: choose crop_pct, fold a temperature into the head, store the weights as float16.

    python weights/calibrate.py tiny-imagenet-200/train runs/one weights/convformer_t8_64.safetensors

Everything is chosen on the held-out pictures. The temperature minimises the cross-entropy (Guo et al.,
https://arxiv.org/abs/1706.04599); dividing the last layer's weight and bias by it divides the logits. crop_pct is the
one with the lowest loss, each at its own temperature; copy it into the model's row of the registry. Interpolation stays
bicubic, as in every other row: 64x64 pictures cannot tell which is best, because crop_pct 1 does not resize them. Class
names go into classes.txt beside the checkpoint, in head order.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from pictures import DecodedPictures, Samples, create_eval_transform, normalise, split
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from train import OPTIONS, ROWS, WEIGHTS, load_weights

from mfcli.files import write_atomically
from mfcli.models.metaformer import build_model
from mfcli.models.metrics import compute_figures, judge

CROPS = (0.8, 0.875, 0.95, 1.0)


@torch.no_grad()
def compute_logits(model: nn.Module, pictures: DecodedPictures) -> Tensor:
    """Return float32 logits (N, classes), computed where the model is."""
    device = next(model.parameters()).device
    return torch.cat([model(normalise(batch, device)).cpu() for batch, _ in DataLoader(pictures, 256)])


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the divisor of the logits that minimises the cross-entropy."""
    log = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([log], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(logits / log.exp(), targets)
        value.backward()
        return value

    optimizer.step(loss)
    return log.exp().item()


def describe(logits: Tensor, targets: Tensor) -> str:
    """Return a text with top-1, loss and calibration error."""
    figures = compute_figures(judge(logits.numpy(), targets.numpy()), logits.shape[1])
    loss, error = figures["log_loss"], figures["calibration_error"]
    return f"top-1 {100 * figures['top1']:.2f} %, loss {loss:.4f}, calibration error {error:.4f}"


def choose_crop_pct(model: nn.Module, pictures: DecodedPictures, size: int) -> tuple[float, float]:
    """Return crop_pct and temperature of the lowest loss; print the others too."""
    targets = torch.tensor(pictures.targets)
    losses = {}
    for crop_pct in CROPS:
        pictures.transform = create_eval_transform(size, crop_pct)
        logits = compute_logits(model, pictures)
        scale = fit_temperature(logits, targets)
        losses[crop_pct, scale] = F.cross_entropy(logits / scale, targets).item()
        print(f"crop_pct {crop_pct}, temperature {scale:.4f}: {describe(logits / scale, targets)}")
    return min(losses, key=losses.__getitem__)


def divide_head(model: nn.Module, temperature: float) -> dict[str, Tensor]:
    """Return float16 weights under which the logits are divided by the temperature; load them into the model."""
    weights = model.state_dict()
    layer = "head.fc2" if "head.fc2.weight" in weights else "head"
    for name in (f"{layer}.weight", f"{layer}.bias"):
        weights[name] = weights[name] / temperature
    halves = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    model.load_state_dict({name: tensor.float() for name, tensor in halves.items()})
    return halves


def finish(model: nn.Module, held_out: DecodedPictures, size: int, classes: list[str], output: Path) -> float:
    """Choose crop_pct and temperature, write the checkpoint and classes.txt beside it; return crop_pct.

    Args:
        model: in eval mode; gets the final weights, rounded to float16.
        held_out: pictures that were not trained on.
        size: of the input, in pixels.
        classes: names in head order.
        output: the checkpoint.
    """
    crop_pct, temperature = choose_crop_pct(model, held_out, size)
    print(f"chosen: crop_pct {crop_pct}, temperature {temperature:.4f}")
    halves = divide_head(model, temperature)
    held_out.transform = create_eval_transform(size, crop_pct)
    print(f"as float16: {describe(compute_logits(model, held_out), torch.tensor(held_out.targets))}")
    write_atomically(output, save(halves))
    write_atomically(output.parent / "classes.txt", "".join(f"{name}\n" for name in classes).encode())
    return crop_pct


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any], Samples]:
    """Return the command line, the run's options and the held-out pictures.

    Raises:
        SystemExit: the run is not finished, or not of these pictures.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that was trained on")
    parser.add_argument("run", type=Path, help="the folder of the finished run")
    parser.add_argument("output", type=Path, help="the checkpoint to write")
    parser.add_argument("--weights", type=Path, help="a checkpoint of average.py, instead of the run's own")
    parser.add_argument("--size", type=int, help="input size, instead of the run's last")
    options = parser.parse_args(argv)
    for name in (WEIGHTS, OPTIONS):
        if not (options.run / name).is_file():
            parser.error(f"{options.run} holds no finished run: {name} is missing")
    trained: dict[str, Any] = json.loads((options.run / OPTIONS).read_text())
    if trained["architecture"] not in ROWS:
        parser.error(f"{options.run} trained {trained['architecture']}, which mfcli.models.registry does not have")
    _, samples, classes = split(options.data, trained["holdout"])
    if not samples or classes != trained["classes"]:
        parser.error(f"{options.data} is not what {options.run} was trained on, or nothing of it was held out")
    return options, trained, samples


def main(argv: list[str] | None = None) -> None:
    """Choose, print and write the checkpoint."""
    options, trained, samples = parse_arguments(argv)
    size, classes = options.size or trained["phases"][-1], trained["classes"]
    model = build_model(ROWS[trained["architecture"]], num_classes=len(classes)).eval()
    load_weights(model, options.weights or options.run / WEIGHTS)
    held_out = DecodedPictures.read(samples, create_eval_transform(size, 1.0))
    finish(model, held_out, size, classes, options.output)


if __name__ == "__main__":
    main()
