"""Compare every checkpoint's backbone with the paper's code and with timm: python tests/parity.py --help.

The paper's side is a folder with `fill.py` (fill_state_dict, golden_input) and `metaformer_logits.json`, the logits
that the paper's code computes from weights filled in by parameter name. timm's side is timm's own model with the same
weights under timm's names. Columns are the largest difference in standard deviations of the logits.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from mfcli import create_model, list_variants
from mfcli.models.matching import to_reference_names
from mfcli.models.registry import Pretraining, Variant

PAPER_TOLERANCE = 1e-5
TIMM_TOLERANCE = 2e-5
ROUNDING = 1e-12


def create_timm_twin(model: torch.nn.Module, timm_name: str, num_classes: int) -> torch.nn.Module:
    """Return timm's model with the weights of `model`; their tensors must correspond one to one.

    Args:
        model: the backbone.
        timm_name: of the same row.
        num_classes: of the head.
    """
    twin: torch.nn.Module = timm.create_model(timm_name, pretrained=False, num_classes=num_classes).eval()
    source = map_names(twin)
    own = model.state_dict()
    assert sorted(source) == sorted(own), "timm and the paper's code have different tensors"
    twin.load_state_dict({source[name]: own[name].reshape(twin.state_dict()[source[name]].shape) for name in own})
    return twin


def map_names(twin: torch.nn.Module) -> dict[str, str]:
    """Return timm's names of the tensors by the paper's names."""
    names = {name: torch.empty(0) for name in twin.state_dict()}
    return dict(zip(to_reference_names(names), names, strict=True))


@dataclass(frozen=True)
class Parity:
    """How far the logits of one row differ from the others', in standard deviations of the logits.

    timm's head norm has eps 1e-6 where the paper's code has 1e-5. In float64 this is the only difference: with timm's
    eps set to the paper's, rounding remains.
    """

    to_paper: float | None
    to_timm: float | None
    to_timm_float64: float | None
    to_timm_float64_same_eps: float | None
    counts_equal: bool

    @property
    def is_equal(self) -> bool:
        """Whether every difference is within its limit."""
        limits = (
            (self.to_paper, PAPER_TOLERANCE),
            (self.to_timm_float64, TIMM_TOLERANCE),
            (self.to_timm_float64_same_eps, ROUNDING),
        )
        return self.counts_equal and all(value is None or value <= limit for value, limit in limits)


def compare(variant: Variant, fill: Any, golden: dict[str, Any] | None) -> Parity:
    """Compare one row with the paper's values and with timm's model.

    Args:
        variant: the row.
        fill: the module of the reference that makes weights and input.
        golden: the values of the paper's code, if there are any.
    """
    model = create_model(variant.name)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(v) for name, v in fill.fill_state_dict(shapes).items()})
    pixels = torch.from_numpy(fill.golden_input(variant.input_size[1]))
    params = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts_equal, to_paper = params == variant.params, None
    to_timm: tuple[float | None, float | None, float | None] = (None, None, None)
    with torch.inference_mode():
        logits = model(pixels)
        if golden is not None:
            counts_equal &= (params, trainable, len(shapes)) == tuple(
                golden[key] for key in ("params", "trainable_params", "tensors")
            )
            off = np.abs(logits[:, :16].numpy() - golden["logits_first16"]).max()
            off = max(off, np.abs(logits.topk(5).values.numpy() - golden["top5_logit"]).max())
            to_paper = float(off / np.mean(golden["logits_std"]))
        if variant.timm_name:
            to_timm = _compare_to_timm(model, variant, pixels, logits)
    return Parity(to_paper, *to_timm, counts_equal)


def _compare_to_timm(
    model: torch.nn.Module, variant: Variant, pixels: torch.Tensor, logits: torch.Tensor
) -> tuple[float, float, float]:
    def difference(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max() / a.std())

    assert variant.timm_name
    twin = create_timm_twin(model, variant.timm_name, variant.num_classes)
    single = difference(logits, twin(pixels))
    model, twin, pixels = model.double(), twin.double(), pixels[:1].double()
    exact = model(pixels)
    double = difference(exact, twin(pixels))
    if variant.architecture.mlp_head:
        setattr(twin.get_submodule("head.fc.norm"), "eps", model.get_submodule("head.norm").eps)  # noqa: B010
    return single, double, difference(exact, twin(pixels))


def main() -> int:
    """Compare all rows but the bundled one; exit code 1 if one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="folder with fill.py and metaformer_logits.json")
    parser.add_argument("names", nargs="*", help="rows to compare; all where none is named")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.reference))
    import fill

    golden = json.loads((arguments.reference / "metaformer_logits.json").read_text())
    rows = [v for v in list_variants() if v.pretraining is not Pretraining.BUNDLED]
    rows = [v for v in rows if not arguments.names or v.name in arguments.names]
    columns = ("to paper", "to timm", "float64", "same eps")
    print(f"{'variant':28}", *(f"{column:>10}" for column in columns), " counts")
    results = {}
    for variant in rows:
        results[variant.name] = found = compare(variant, fill, golden.get(variant.name))
        numbers = (found.to_paper, found.to_timm, found.to_timm_float64, found.to_timm_float64_same_eps)
        cells = [f"{'-' if value is None else format(value, '.2e'):>10}" for value in numbers]
        print(f"{variant.name:28}", *cells, " equal" if found.counts_equal else " WRONG", flush=True)
    different = [name for name, found in results.items() if not found.is_equal]
    print(f"{len(results)} rows, different: {', '.join(different) or 'none'}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
