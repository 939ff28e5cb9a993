"""Compare `mf evaluate` with timm's validate.py: the same weights, the same pictures.

timm's loop (create_dataset, create_loader, CrossEntropyLoss, accuracy) is repeated here, since timm's package does not
contain the script. The backbone has random weights; its head is fitted to a few pictures of FOLDER/train by least
squares, so that the answers are not all wrong. Top-1 and top-5 must be equal and the loss within 1e-4, else the exit
code is 1. Needs `pip install '.[torch]'`:

    python benchmarks/evaluate.py FOLDER         # with train/WNID/*.jpg and val/WNID/*.jpg, such as Imagenette
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.utils import AverageMeter, accuracy
from torch import nn

from mfcli.inputs.dataset import read_judged, spread
from mfcli.models.registry import find_variant

BATCH_SIZE = 16
TOLERANCE = 1e-4
_PER_CLASS = 20
"""Pictures of a class that the head is fitted to."""


def link_pictures(folder: Path, target: Path, limit: int) -> Path:
    """Link `limit` pictures, spread over the classes, and return the folder with them."""
    for picture in spread(read_judged(folder), limit):
        (target / picture.label).mkdir(parents=True, exist_ok=True)
        path = Path(picture.source.argument).resolve()
        (target / picture.label / path.name).symlink_to(path)
    return target


def make_loader(model: nn.Module, folder: Path) -> Any:
    """Return timm's loader of a folder of folders, as validate.py makes it on a CPU."""
    config = resolve_model_data_config(model)
    return create_loader(
        create_dataset("", root=str(folder)),
        input_size=config["input_size"],
        batch_size=BATCH_SIZE,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=0,
        crop_pct=config["crop_pct"],
    )


@torch.no_grad()
def fit_head(model: Any, folder: Path) -> None:
    """Fit the head to the pictures of a folder."""
    loader = make_loader(model, folder)
    batches = [(model.forward_head(model.forward_features(x), pre_logits=True), y) for x, y in loader]
    features, targets = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    mean, scale = features.mean(0), features.std(0) + 1e-6
    inputs = np.column_stack([(features - mean) / scale, np.ones(len(features))])
    size = inputs.shape[1]
    wanted = 6 * np.eye(model.num_classes)[targets]
    solved = np.linalg.solve(inputs.T @ inputs + 100 * np.eye(size), inputs.T @ wanted).T
    weight = solved[:, :-1] / scale
    model.head.fc.weight.copy_(torch.tensor(weight))
    model.head.fc.bias.copy_(torch.tensor(solved[:, -1] - weight @ mean))


@torch.no_grad()
def validate(model: nn.Module, folder: Path) -> dict[str, float]:
    """Return what timm's validate.py measures; shares are 0 to 1."""
    criterion = nn.CrossEntropyLoss()
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    started = time.perf_counter()
    for x, target in make_loader(model, folder):
        output = model(x)
        acc1, acc5 = accuracy(output, target, topk=(1, 5))
        losses.update(criterion(output, target).item(), x.size(0))
        top1.update(acc1.item(), x.size(0))
        top5.update(acc5.item(), x.size(0))
    rate = losses.count / (time.perf_counter() - started)
    return {"top1": top1.avg / 100, "top5": top5.avg / 100, "log_loss": losses.avg, "images_per_s": rate}


def evaluate(folder: Path, model: str, weights: Path, labels: Path) -> dict[str, Any]:
    """Return the figures of `mf evaluate`."""
    options = ["-m", model, "--weights", str(weights), "--labels", str(labels), "--no-exif", "--format", "json", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "mfcli", "evaluate", str(folder), *options],
        env=os.environ | {"MF_CACHE_DIR": str(weights.parent / "cache")},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main() -> int:
    """Measure, print and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="poolformerv2_s12", help="a row whose head is a single layer")
    parser.add_argument("--pictures", type=int, default=2000)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        val = link_pictures(options.folder / "val", work / "val", options.pictures)
        wnids = sorted(path.name for path in val.iterdir())
        train = link_pictures(options.folder / "train", work / "train", _PER_CLASS * len(wnids))
        timm_name = find_variant(options.model).timm_name or options.model
        model = timm.create_model(timm_name.split(".")[0], pretrained=False, num_classes=len(wnids)).eval()
        fit_head(model, train)
        save_file(model.state_dict(), work / "weights.safetensors")
        (work / "labels.csv").write_text("wnid,name\n" + "".join(f"{wnid},{wnid}\n" for wnid in wnids))
        theirs = validate(model, val)
        ours = evaluate(val, options.model, work / "weights.safetensors", work / "labels.csv")
    print(f"{ours['pictures']} pictures, {options.model}\n{'':14}{'timm':>12}{'mf':>12}")
    for name, value in theirs.items():
        print(f"{name:14}{value:12.6f}{ours[name]:12.6f}")
    is_equal = all(round(abs(ours[name] - theirs[name]), 6) == 0 for name in ("top1", "top5"))
    return 0 if is_equal and abs(ours["log_loss"] - theirs["log_loss"]) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
