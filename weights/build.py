"""Build the bundled artifact from its checkpoint: python weights/build.py.

Reads convformer_t8_64.safetensors (float16 weights under the paper's parameter names) and classes.txt (the WordNet id
of each head index) from this folder and writes convformer_t8_64.onnx and its sidecar beside them.
"""

from pathlib import Path

from mfcli.artifact.build import build_artifact
from mfcli.files import sha256_of
from mfcli.models.labels import look_up_wnids
from mfcli.models.registry import find_variant

HERE = Path(__file__).parent


def main() -> None:
    """Build the artifact in place."""
    variant = find_variant("bundled")
    checkpoint = HERE / f"{variant.name}.safetensors"
    labels = look_up_wnids((HERE / "classes.txt").read_text().split())
    path = HERE / f"{variant.name}.onnx"
    build_artifact(variant, checkpoint, sha256_of(checkpoint), path, labels=labels, half_weights=True, compare=True)


if __name__ == "__main__":
    main()
