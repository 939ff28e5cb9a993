"""The README is true: its commands and its Python run, and its figures are those that were measured."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CHECKOUT, Ran
from documents import broken_links, check_options, fenced, mf_commands, prose
from mfcli.models.registry import find_variant, list_variants

README = (CHECKOUT / "README.md").read_text()
CARD = (CHECKOUT / "weights" / "README.md").read_text()
NEEDS_NETWORK = {"download"}
MAX_WORDS = 900


@pytest.fixture
def folder_of_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands are typed: the examples, and the photos that they speak of."""
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples")
    shutil.copytree(CHECKOUT / "examples", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_short_and_shows_a_picture_first() -> None:
    assert len(prose(README).split()) <= MAX_WORDS
    assert README.index("](docs/images/predict.svg)") < README.index("## ")


def test_the_first_two_commands_are_what_ci_runs() -> None:
    first, second = (block.strip() for block in fenced(README, "sh")[:2])
    assert first == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/mf predict examples/orange.jpg -k 3"
    assert second == ".venv/bin/pip install '.[test]' && .venv/bin/python -m pytest"
    ci = (CHECKOUT / ".ci" / "run").read_text().splitlines()
    assert ci.count(first) == ci.count(second) == 1
    assert ci.index(first) < ci.index(second)


@pytest.mark.slow
def test_the_commands_run(mf: Callable[..., Ran], folder_of_a_reader: Path) -> None:
    commands = [line.split("#")[0] for line in fenced(README, "sh")[2].splitlines()]
    assert len(commands) == 7
    for command in commands:
        check_options(command.removeprefix("mf "))
        arguments = shlex.split(command)[1:]
        if arguments[0] == "benchmark":
            arguments += ["--seconds", "0.1", "--rounds", "1", "-b", "1"]
        if arguments[0] not in NEEDS_NETWORK:
            assert mf(*arguments).code == 0, command
    assert (folder_of_a_reader / "answers.jsonl").read_text().count("\n") == 3


@pytest.mark.usefixtures("folder_of_a_reader")
def test_the_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = fenced(README, "python")
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("orange 0.8")


def test_options_and_links_exist() -> None:
    for command in mf_commands(README):
        check_options(command)
    assert not broken_links(CHECKOUT / "README.md")


def test_the_models_are_those_of_the_registry() -> None:
    for name, figure in re.findall(r"--model (\w+)` \|[^|]*?([\d.]+) % top-1", README):
        assert float(figure) == find_variant(name).published_top1
    count, best = re.search(r"All (\d+) models\].*?up to ([\d.]+) % top-1", README, re.DOTALL).groups()  # type: ignore[union-attr]
    assert int(count) == len(list_variants())
    assert float(best) == max(variant.published_top1 or 0 for variant in list_variants())


def test_the_model_card_agrees_with_the_files() -> None:
    for name in ("convformer_t8_64.onnx", "convformer_t8_64.safetensors"):
        (megabytes,) = re.findall(rf"`{name}` \(([\d.]+) MB\)", CARD)
        assert float(megabytes) == pytest.approx((CHECKOUT / "weights" / name).stat().st_size / 1e6, abs=0.06)
    assert "](" not in CARD, "the wheel ships it without the files beside it, where a relative link would be broken"


def test_the_figures_are_those_that_were_measured() -> None:
    figures = json.loads((CHECKOUT / "weights" / "figures.json").read_text())
    low, high = figures["top1_interval"]
    assert f"| top-1 | {figures['top1']:.2f} % (95 % interval {low:.2f} to {high:.2f}) |" in CARD
    assert f"| top-5 | {figures['top5']:.2f} % |" in CARD
    assert f"| expected calibration error (15 bins) | {figures['calibration_error']:.4f} |" in CARD
    rounds = figures["images_per_s_rounds"]
    assert f"| {figures['images_per_s']:.0f}, median of five rounds ({min(rounds):.0f} to {max(rounds):.0f}) |" in CARD
    assert len(rounds) == 5
    for text in (README, (CHECKOUT / "CHANGELOG.md").read_text()):
        assert f"{figures['top1']:.1f} % top-1 on Tiny ImageNet" in " ".join(text.split())
    assert figures["model"] == find_variant("bundled").name
