"""Documents that cannot drift: the README's commands, outputs, options and codes are those of the program."""

import json
import re
import shlex
from collections.abc import Callable

import pytest
from typer.main import get_command

from conftest import CHECKOUT, Ran
from mfcli.cli import app
from mfcli.errors import ExitCode, FailureCode

README = (CHECKOUT / "README.md").read_text()
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_two_commands_are_what_ci_runs() -> None:
    first, second = (block.strip() for block in fenced("sh")[:2])
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/mf predict examples/orange.jpg -k 3"
    assert second == ".venv/bin/pip install '.[test]' && .venv/bin/python -m pytest"
    ci = (CHECKOUT / ".ci" / "run").read_text().splitlines()
    assert ci.count(first) == ci.count(second) == 1
    assert ci.index(first) < ci.index(second)


def test_the_first_output_is_what_is_printed(mf: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    assert mf("predict", "examples/orange.jpg", "-k", "3").out == fenced("text")[0]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_section_that_names_its_options(name: str) -> None:
    sections = re.split(r"^## ", README, flags=re.MULTILINE)
    section = next(s for s in sections if s.startswith(f"mf {name}\n"))
    commands = [COMMANDS[name], *getattr(COMMANDS[name], "commands", {}).values()]
    params = [parameter for command in commands for parameter in command.params]
    options = {o for p in params for o in p.opts if o.startswith("-") and o not in ("-h", "--help")}
    missing = {option for option in options if f"`{option}" not in section and f" {option} " not in section}
    assert not missing


def test_every_option_in_an_example_exists() -> None:
    for line in "".join(fenced("sh")).splitlines():
        for command in re.findall(r"(?:^|\| )(?:\.venv/bin/)?mf ([^|#>]*)", line):
            name, *words = shlex.split(command)
            described = COMMANDS[name]
            if hasattr(described, "commands"):
                described = described.commands[words.pop(0)]
            known = {option for parameter in described.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, command


def test_batch_examples_name_a_model() -> None:
    batches = [line for line in "".join(fenced("sh")).splitlines() if "mf predict" in line and "*" in line]
    assert batches
    assert all("--model" in line for line in batches)


def test_every_exit_and_failure_code_is_explained() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert codes == set(ExitCode)
    assert all(f"`{code}`" in README for code in FailureCode)


def test_bilinear_and_bicubic_answers_are_those_of_the_table() -> None:
    import torch
    from PIL import Image
    from timm.data import create_transform

    from mfcli.artifact.ensure import ensure_artifact
    from mfcli.models.checkpoint import load_checkpoint
    from mfcli.models.registry import find_variant
    from mfcli.settings import Settings

    variant = find_variant("bundled")
    artifact = ensure_artifact(variant, None, Settings.from_environ())
    assert artifact.checkpoint is not None
    model = load_checkpoint(artifact.checkpoint, variant).model
    rows = re.findall(r"^\| .*create_transform.*\| orange ([\d.]+) % \| lemon ([\d.]+) % \|$", README, re.MULTILINE)
    rows += re.findall(
        r"^\| the same with .*bicubic.*\| orange ([\d.]+) % \| lemon ([\d.]+) % \|$", README, re.MULTILINE
    )
    assert len(rows) == 2
    assert f"create_transform((3, 64, 64), crop_pct={variant.crop_pct})" in README
    picture = Image.open(CHECKOUT / "examples" / "orange.jpg").convert("RGB")
    for row, settings in zip(rows, ({}, {"interpolation": "bicubic"}), strict=True):
        transform = create_transform(input_size=(3, 64, 64), crop_pct=variant.crop_pct, **settings)
        with torch.inference_mode():
            probs = model(transform(picture)[None]).softmax(-1)[0].topk(2).values
        assert [float(value) for value in row] == pytest.approx((100 * probs).tolist(), abs=0.06)


def test_the_model_card_agrees_with_the_files() -> None:
    card = (CHECKOUT / "weights" / "README.md").read_text()
    for name in ("convformer_t8_64.onnx", "convformer_t8_64.safetensors"):
        (megabytes,) = re.findall(rf"`{name}` \(([\d.]+) MB\)", card)
        assert float(megabytes) == pytest.approx((CHECKOUT / "weights" / name).stat().st_size / 1e6, abs=0.06)


def test_the_figures_are_those_that_were_measured() -> None:
    from mfcli.models.registry import find_variant

    figures = json.loads((CHECKOUT / "weights" / "figures.json").read_text())
    card = (CHECKOUT / "weights" / "README.md").read_text()
    low, high = figures["top1_interval"]
    assert f"| top-1 | {figures['top1']:.2f} % (95 % interval {low:.2f} to {high:.2f}) |" in card
    assert f"| top-5 | {figures['top5']:.2f} % |" in card
    assert f"| expected calibration error (15 bins) | {figures['calibration_error']:.4f} |" in card
    rounds = figures["images_per_s_rounds"]
    assert f"| {figures['images_per_s']:.0f}, median of five rounds ({min(rounds):.0f} to {max(rounds):.0f}) |" in card
    assert len(rounds) == 5
    for text in (README, (CHECKOUT / "CHANGELOG.md").read_text()):
        assert f"{figures['top1']:.1f} % top-1 on Tiny ImageNet" in " ".join(text.split())
    assert figures["model"] == find_variant("bundled").name
