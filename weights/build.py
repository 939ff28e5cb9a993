"""Build the bundled artifact from its checkpoint: python weights/build.py.

Reads convformer_t8_64.safetensors (float16 weights under the paper's parameter names) and classes.txt (the WordNet id
of each head index) from this folder and writes convformer_t8_64.onnx and its sidecar beside them.
"""

from pathlib import Path

from mfcli.artifact.build import build_artifact
from mfcli.files import sha256_of
from mfcli.models.labels import make_class_labels
from mfcli.models.registry import Variant, find_variant

HERE = Path(__file__).parent


def build(variant: Variant, checkpoint: Path) -> None:
    """Build the artifact of a checkpoint beside it; classes.txt there names the classes."""
    labels = make_class_labels((checkpoint.parent / "classes.txt").read_text().split())
    path = checkpoint.with_suffix(".onnx")
    build_artifact(variant, checkpoint, sha256_of(checkpoint), path, labels=labels, half_weights=True, compare=True)


def main() -> None:
    """Build the bundled artifact in place."""
    variant = find_variant("bundled")
    build(variant, HERE / f"{variant.name}.safetensors")


if __name__ == "__main__":
    main()
