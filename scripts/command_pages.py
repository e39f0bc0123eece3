"""Write docs/commands, one page a command, from what `--help` knows; a test compares the pages with it.

python scripts/command_pages.py
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, CommandInfo

from cryoforum.cli import app

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "commands"


def pages() -> dict[str, str]:
    """Content of every page by file name, the index first."""
    commands = {_name(one): one for one in app.registered_commands}
    rows = [f"| [`{name}`]({name}.md) | {_first_line(_help(one))} |" for name, one in commands.items()]
    index = "\n".join(["# Commands", "", "| command | what it does |", "|---|---|", *rows, ""])
    return {"README.md": index} | {f"{name}.md": _page(name, one) for name, one in commands.items()}


def _callback(command: CommandInfo) -> Callable[..., Any]:
    assert command.callback is not None
    return command.callback


def _name(command: CommandInfo) -> str:
    return command.name or _callback(command).__name__.replace("_", "-")


def _help(command: CommandInfo) -> str:
    return inspect.cleandoc(_callback(command).__doc__ or "")


def _page(name: str, command: CommandInfo) -> str:
    callback = _callback(command)
    hints, defaults = get_type_hints(callback, include_extras=True), inspect.signature(callback).parameters
    arguments, options = [], []
    for parameter, hint in hints.items():
        kind, info = _parts(hint)
        default = defaults[parameter].default if parameter in defaults else None
        if isinstance(info, ArgumentInfo):
            arguments.append((info.metavar or parameter.upper(), info.help or ""))
        elif parameter not in ("return", "context"):
            options.append(_option_row(parameter, kind, info, default))
    usage = " ".join(["cryoforum", name, *(metavar for metavar, _ in arguments), "[OPTIONS]"])
    parts = [f"# {name}", _help(command), f"```sh\n{usage}\n```"]
    if command.epilog:
        parts.append(f"Example:\n\n```sh\n{command.epilog.removeprefix('Example: ')}\n```")
    if arguments:
        rows = [f"| `{metavar}` | {_cell(text)} |" for metavar, text in arguments]
        parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    parts.append("\n".join(["| option | values | |", "|---|---|---|", *options]))
    return "\n\n".join(parts) + "\n"


def _parts(hint: Any) -> tuple[Any, Any]:
    """Type, without None, and Typer's description of a parameter."""
    info = None
    if get_origin(hint) is Annotated:
        hint, info = get_args(hint)[:2]
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    return hint, info


def _option_row(parameter: str, kind: Any, info: Any, default: Any) -> str:
    # In an Annotated type Typer's first positional argument, the names, is what it calls the default.
    given = [getattr(info, "default", None), *(getattr(info, "param_decls", None) or ())]
    words = [one for one in given if isinstance(one, str)] or [f"--{parameter.replace('_', '-')}"]
    spelled = " / ".join(f"`{word}`" for joined in words for word in joined.split("/"))
    if get_origin(kind) is Literal:
        values = ", ".join(f"`{word}`" for word in get_args(kind))
    elif kind is bool:
        values = "flag"
    else:
        values = getattr(info, "metavar", None) or {int: "integer", float: "number", str: "text"}.get(
            kind, "path"
        )
        values = "text" if get_origin(kind) is list else values
    if default is inspect.Parameter.empty:
        values += "; required"
    elif default not in (None, False):
        values += f"; default `{default}`"
    return f"| {spelled} | {_cell(values)} | {_cell(getattr(info, 'help', None) or '')} |"


def _first_line(text: str) -> str:
    return _cell(inspect.cleandoc(text).split("\n\n")[0])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, content in pages().items():
        (FOLDER / name).write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
