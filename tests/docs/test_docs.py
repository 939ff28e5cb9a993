"""Documents that cannot drift: generated pages are up to date, and tables and examples are those of the program."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.mark import ParameterSet

from conftest import CHECKOUT, Ran
from documents import broken_links, check_options, fenced, mf_commands
from mfcli.errors import ExitCode, FailureCode
from mfcli.inputs.codecs import DEFAULT_FORMATS, OPTIONAL_FORMATS

DOCS = CHECKOUT / "docs"
PACKAGE = CHECKOUT / "src" / "mfcli"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*PAGES, *(CHECKOUT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "weights/HISTORY.md"))]
GENERATED = ("docs/reference/commands.md", "docs/reference/models.md", "docs/images/predict.svg")


def page(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.fixture(scope="module")
def render_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_docs", CHECKOUT / "scripts" / "render_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_are_up_to_date(render_docs: ModuleType, name: str) -> None:
    assert set(render_docs.RENDERED) == set(GENERATED)
    assert (CHECKOUT / name).read_text() == render_docs.RENDERED[name](), "run: make docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_links_and_options_exist(document: Path) -> None:
    assert not broken_links(document)
    for command in mf_commands(document.read_text()):
        check_options(command)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (CHECKOUT / "mkdocs.yml").read_text()
    assert set(re.findall(r"(\S+\.md)$", navigation, re.MULTILINE)) == {str(path.relative_to(DOCS)) for path in PAGES}


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sources = re.findall(
        r'(?:src|href)="(https?:[^"]+\.(?:js|css|woff2?)[^"]*)"', (tmp_path / "index.html").read_text()
    )
    assert not sources, "the pages load nothing from elsewhere"


def test_the_tutorial_prints_what_it_shows(
    mf: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CHECKOUT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", page("tutorial.md"), re.MULTILINE | re.DOTALL)
    ran = 0
    for commands, expected in blocks:
        for command in commands.splitlines():
            name, *arguments = shlex.split(command)
            if name != "mf" or "caformer_s18" in arguments:  # an installation, a download
                continue
            done = mf(*arguments)
            assert done.code == (ExitCode.SOME_FAILED if "missing.jpg" in arguments else ExitCode.OK), command
            assert not expected or done.out == expected
            ran += 1
    assert ran == 7


def test_the_preprocessing_command_runs(mf: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    (command,) = [c for block in fenced(page("how-to/own-model.md"), "sh") for c in block.splitlines() if "--mean" in c]
    done = mf(*shlex.split(command)[1:])
    assert (done.code, "orange" in done.out) == (ExitCode.OK, True)


def python_blocks(*names: str) -> list[ParameterSet]:
    """The Python of pages, without what needs packages that are not installed."""
    found = []
    for name in names:
        for number, block in enumerate(fenced(page(name), "python"), 1):
            imported = re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)
            missing = [module for module in imported if importlib.util.find_spec(module) is None]
            marks = pytest.mark.skipif(bool(missing), reason=f"needs {missing}")
            found.append(pytest.param(name, block, id=f"{name}-{number}", marks=marks))
    return found


@pytest.mark.parametrize(
    ("name", "block"),
    python_blocks("tutorial.md", "how-to/python.md", "reference/python.md", "reference/output.md"),
)
def test_the_python_runs(name: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    names: dict[str, object] = {"__name__": "block"}
    exec(compile(block, name, "exec"), names)
    assert len(names) > 2, "it has defined nothing"  # __builtins__ is there, too


@pytest.mark.slow
def test_workers_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(fenced(page("how-to/python.md"), "python")[-1])
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.splitlines()[-1] == "examples/orange.jpg orange", done.stderr


def test_every_exit_and_failure_code_is_explained() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page("reference/exit-codes.md"), re.M)} == set(ExitCode)
    section = page("reference/output.md").partition("### Error codes")[2].partition("###")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(FailureCode)


def test_every_picture_format_is_listed() -> None:
    rows = re.findall(r"^\| (\w+) \| (`.*?`) \| (.*?) \|$", page("reference/picture-formats.md"), re.MULTILINE)
    assert {name: tuple(shlex.split(suffixes.replace("`", ""))) for name, suffixes, _ in rows} == {
        **DEFAULT_FORMATS,
        **OPTIONAL_FORMATS,
    }
    optional = {name for name, _, decoded in rows if decoded == f"with `--formats {name.lower()}`"}
    assert optional == set(OPTIONAL_FORMATS)


def test_every_environment_variable_is_listed() -> None:
    listed = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", page("reference/environment.md")))
    read = set(re.findall(r'"((?:MF|HF|HUGGINGFACE|TORCH)_[A-Z_]+)"', (PACKAGE / "settings.py").read_text()))
    assert read <= listed
    assert {name for name in listed if name.startswith("MF_")} <= read


def test_the_architecture_lists_modules_that_exist() -> None:
    tree = page("architecture.md").partition("src/mfcli/\n")[2].partition("```")[0]
    listed, folders = set(), {0: ""}
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        entry = re.match(r"\s*((?:[\w.]+/?(?: |$))+)", line)
        assert entry is not None, line
        for name in entry[1].split():
            if name.endswith("/"):
                folders[depth] = name
            elif name.endswith((".py", ".json")):
                above = "".join(folders[level] for level in sorted(folders) if 0 < level < depth)
                listed.add(f"{above}{name}")
    assert not [name for name in listed if not (PACKAGE / name).is_file()]
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert sorted(modules - listed - {name for name in modules if name.endswith("/__init__.py")}) == []
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")}
    assert {(PACKAGE / name).parent for name in listed} == packages


def test_the_architecture_has_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    section = page("architecture.md").partition("## Layers")[2]
    assert fenced(section, "text")[0].splitlines() == layers


def test_the_places_in_the_architecture_exist() -> None:
    section = page("architecture.md").partition("## Where does X go?")[2].partition("## ")[0]
    for name in set(re.findall(r"`((?:\w+/)*\w+\.(?:py|md|toml))`", section)):
        if not re.search(r"[A-Z]{4}", Path(name).stem):  # a file to add
            assert any((root / name).is_file() for root in (PACKAGE, CHECKOUT)), name
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    for name in set(re.findall(r"`([A-Za-z_]{4,})`", section)):
        assert re.search(rf"^ *(?:def |class )?{name}\b(?:\(|:| =)", code, re.MULTILINE), name


def test_bilinear_and_bicubic_answers_are_those_of_the_table() -> None:
    import torch
    from PIL import Image
    from timm.data import create_transform

    from mfcli.artifact.ensure import ensure_artifact
    from mfcli.models.checkpoint import load_checkpoint
    from mfcli.models.registry import find_variant
    from mfcli.settings import Settings

    text = page("preprocessing.md")
    variant = find_variant("bundled")
    artifact = ensure_artifact(variant, None, Settings.from_environ())
    assert artifact.checkpoint is not None
    model = load_checkpoint(artifact.checkpoint, variant).model
    answers = r"\| orange ([\d.]+) % \| lemon ([\d.]+) % \|$"
    rows = re.findall(rf"^\| .*create_transform.*{answers}", text, re.MULTILINE)
    rows += re.findall(rf"^\| the same with .*bicubic.*{answers}", text, re.MULTILINE)
    assert len(rows) == 2
    assert f"create_transform((3, 64, 64), crop_pct={variant.crop_pct})" in text
    picture = Image.open(CHECKOUT / "examples" / "orange.jpg").convert("RGB")
    for row, settings in zip(rows, ({}, {"interpolation": "bicubic"}), strict=True):
        transform = create_transform(input_size=(3, 64, 64), crop_pct=variant.crop_pct, **settings)
        with torch.inference_mode():
            probs = model(transform(picture)[None]).softmax(-1)[0].topk(2).values
        assert [float(value) for value in row] == pytest.approx((100 * probs).tolist(), abs=0.06)
