"""Write tests/golden/logits.json: what this backbone computes from deterministic weights.

Run it once parity with the paper's code was shown (make parity), from this folder: python make_golden.py
"""

import json
from pathlib import Path
from typing import Any

import torch

from deterministic import fill, pixels
from mfcli import create_model
from mfcli.models.registry import find_variant

NAMES = (
    "identityformer_s12",
    "randformer_s12",
    "poolformer_s12",
    "poolformerv2_s12",
    "convformer_s18",
    "caformer_s18",
    "convformer_t8_64",
)
"""The smallest row of each family, and the bundled one."""
GOLDEN = Path(__file__).parent / "golden" / "logits.json"


def compute(name: str) -> dict[str, Any]:
    """Return features, logits and their spread of one row."""
    model = fill(create_model(name))
    batch = pixels(2, find_variant(name).input_size[1])
    with torch.inference_mode():
        features = model.forward_features(batch)  # type: ignore[operator]
        logits = model(batch)
    return {
        "features_first8": features[:, :8].tolist(),
        "logits_first16": logits[:, :16].tolist(),
        "logits_std": logits.std(dim=1).tolist(),
        "top5_index": logits.topk(5).indices.tolist(),
    }


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({name: compute(name) for name in NAMES}, indent=1) + "\n")
