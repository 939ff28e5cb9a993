"""Writes the parts of the documentation that come from the program itself, so that they cannot drift from it.

The command reference from the commands, the table of models from the registry, and a picture of the terminal from what
`mf predict` prints. tests/docs/ renders them again and compares.

    python scripts/render_docs.py
"""

import html
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text
from typer.main import get_command

from mfcli.cli import make_app
from mfcli.models.registry import Variant, list_variants

CHECKOUT = Path(__file__).parent.parent

# --- the command reference ------------------------------------------------------------------------------------------

_COMMANDS_HEAD = """\
# Command line

<!-- written by scripts/render_docs.py -->

This page is generated from the commands themselves. `mf COMMAND --help` shows the same in a terminal. `-h` and
`--help` work everywhere and are left out below; `mf --version` prints the version.
"""
_TYPES = {"text": "TEXT", "str": "TEXT", "integer": "N", "int": "N", "float": "X", "path": "FILE"}


def render_commands() -> str:
    """Return the page of all commands, with their arguments and options."""
    sections = [_render_command(name, command) for name, command in _walk_commands("mf", get_command(make_app()))]
    return "\n".join([_COMMANDS_HEAD, *sections])


def _walk_commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command that can be run, with its full name."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield name, command
        return
    for child_name, child in subcommands.items():
        yield from _walk_commands(f"{name} {child_name}", child)


def _render_command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(_argument_usage, arguments)])
    lines = [f"## {name}", "", f"```text\n{usage}\n```", "", *_paragraphs(command.help)]
    if arguments:
        rows = [(_cell(f"`{_metavar(a)}`"), _cell(a.help), _default(a)) for a in arguments]
        lines += _render_table(("argument", "meaning", "default"), rows)
    panels = dict.fromkeys(getattr(option, "rich_help_panel", None) for option in options)
    for panel in sorted(panels, key=lambda panel: panel is None):  # what has no panel comes last
        rows = [
            (_option_names(option), _cell(option.help), _default(option))
            for option in options
            if getattr(option, "rich_help_panel", None) == panel
        ]
        if len(panels) > 1:
            lines += [f"### {name}: {panel or 'General'}", ""]
        lines += _render_table(("option", "meaning", "default"), rows)
    lines += ["```sh", *command.epilog.splitlines()[1:], "```", ""]
    return "\n".join(lines)


def _argument_usage(argument: Any) -> str:
    return _metavar(argument) if argument.required else f"[{_metavar(argument)}]"


def _paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring, each on one line and followed by an empty one."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return [line for paragraph in paragraphs for line in (html.escape(paragraph, quote=False), "")]


def _option_names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} `{_metavar(option)}`".replace("|", "\\|")


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    choices = getattr(parameter.type, "choices", None)
    if choices:
        return "|".join(str(getattr(choice, "value", choice)) for choice in choices)
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return _TYPES.get(str(parameter.type.name).removesuffix(" range"), "VALUE")


def _default(parameter: Any) -> str:
    shown = parameter.show_default
    if isinstance(shown, str):
        return _cell(shown)
    default = getattr(parameter.default, "value", parameter.default)
    if not shown or default is None or default is False:
        return "required" if parameter.required else ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _cell(text: str | None) -> str:
    return html.escape(" ".join((text or "").split()), quote=False).replace("|", "\\|")


def _render_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [header, tuple("---" for _ in header), *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


# --- the table of models --------------------------------------------------------------------------------------------

_MODELS_HEAD = """\
# Models

<!-- written by scripts/render_docs.py -->

Every name works with `--model`, in upper or lower case: the paper's name in the first column, or timm's in the second.
`mf list-models` shows the same rows and filters them; `mf info NAME` shows one in full.

- *training*: `in1k` is ImageNet-1k; `in21k` is the full ImageNet of 21,841 classes; `in21ft1k` is the full ImageNet
  followed by fine-tuning on ImageNet-1k.
- *params*: millions of parameters. *MACs*: billions of multiply-adds, as printed in the paper.
- *top-1*: ImageNet-1k accuracy in percent, as printed in the paper; *timm* is timm's own measurement.
- The bundled model, `convformer_t8_64`, was trained on Tiny ImageNet; see [accuracy](../accuracy.md).
"""


def render_models() -> str:
    """Return the page of all models, a row per checkpoint."""
    header = ("name", "timm's name", "pixels", "training", "classes", "params", "MACs", "top-1", "timm")
    return "\n".join([_MODELS_HEAD, *_render_table(header, [_model_cells(v) for v in list_variants()])])


def _model_cells(variant: Variant) -> tuple[str, ...]:
    return (
        f"`{variant.name}`",
        f"`{variant.timm_name}`" if variant.timm_name else "",
        str(variant.input_size[1]),
        f"`{variant.pretraining}`",
        str(variant.num_classes),
        f"{variant.params / 1e6:.1f}",
        _decimals(variant.published_macs_g),
        _decimals(variant.published_top1),
        _decimals(variant.timm_top1, 2),
    )


def _decimals(figure: float | None, places: int = 1) -> str:
    return "" if figure is None else f"{figure:.{places}f}"


# --- the picture of the terminal ------------------------------------------------------------------------------------

SHOWN = ("mf predict examples/orange.jpg -k 3", "mf predict examples -k 2 -q")
"""The commands in the picture."""
_COLUMNS = 80
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<!-- written by scripts/render_docs.py -->
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g>
</svg>
"""


def render_terminal() -> str:
    """Run the commands as in a terminal and return what it shows as SVG."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=_COLUMNS, file=nowhere, force_terminal=True, highlight=False)
        for command in SHOWN:
            console.print(Text(f"$ {command}", Style(bold=True)))
            for line in _terminal_output(command).splitlines():
                text = Text.from_ansi(line)
                for part in text.divide(range(_COLUMNS, len(text), _COLUMNS)):  # as a terminal breaks a long line
                    console.print(part, no_wrap=True)
    svg = console.export_svg(title="mf", theme=SVG_EXPORT_THEME, code_format=_SVG, unique_id="mf")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _terminal_output(command: str) -> str:
    """What a command writes to a terminal of 80 columns: its notes, then its results."""
    controller, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MF_")}
    environment |= {"COLUMNS": str(_COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR", None)
    program = [sys.executable, "-m", "mfcli", *command.split()[1:]]
    with subprocess.Popen(program, cwd=CHECKOUT, env=environment, stdout=terminal, stderr=subprocess.PIPE) as process:
        os.close(terminal)
        written = b"".join(iter(lambda: _read(controller), b""))
        assert process.stderr is not None
        notes = process.stderr.read()
    os.close(controller)
    if process.returncode:
        raise SystemExit(f"{command}: {notes.decode()}")
    return (notes + written).decode().replace("\r\n", "\n")


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except OSError:  # how Linux reports the end of a terminal
        return b""


RENDERED: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": render_commands,
    "docs/reference/models.md": render_models,
    "docs/images/predict.svg": render_terminal,
}
"""The generated files, relative to the checkout, and what renders each."""


def main() -> None:
    """Write every generated file."""
    for name, render in RENDERED.items():
        (CHECKOUT / name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
