"""Whether artifacts have the same bytes with and without PyTorch: each model is built from random weights both ways.

In one process torch and timm are imported first, in the other they cannot be imported. Needs 1 GB of disk and 2 GB of
memory, and takes about 10 s for each model:

    python benchmarks/light_artifacts.py [MODEL...]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from mfcli.files import sha256_of
from mfcli.models.checkpoint import write_random
from mfcli.models.registry import find_variant, list_variants

WITH_TORCH = "import timm, torch"
WITHOUT_TORCH = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm']))"
BUILD = """
import sys
from pathlib import Path
from mfcli.artifact.build import build_artifact
from mfcli.models.registry import find_variant
model, weights, digest, path = sys.argv[1:]
build_artifact(find_variant(model), Path(weights), digest, Path(path))
"""


def build(start: str, model: str, weights: Path) -> str:
    """Build an artifact in a process that begins with this statement; return the file's digest."""
    path = weights.with_suffix(".onnx")
    command = [sys.executable, "-c", f"{start}\n{BUILD}", model, str(weights), sha256_of(weights), str(path)]
    subprocess.run(command, check=True)
    try:
        return sha256_of(path)
    finally:
        path.unlink()


def main() -> int:
    """Compare and print; exit code 1 if two artifacts differ."""
    names = [find_variant(name).name for name in sys.argv[1:]] or [v.name for v in list_variants() if v.sources]
    different = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "random.safetensors"
            write_random(weights, find_variant(name))
            digests = {build(start, name, weights) for start in (WITH_TORCH, WITHOUT_TORCH)}
        different += len(digests) != 1
        print(f"{name:40}{'equal' if len(digests) == 1 else 'different':10}{' '.join(sorted(digests))}", flush=True)
    print(f"{len(names) - different} of {len(names)} models have the same artifact with and without torch")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
