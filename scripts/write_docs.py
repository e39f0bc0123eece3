"""Write what the code says of itself into docs: a page a command, and the tree of docs/architecture.md.

    python scripts/write_docs.py

A test compares the files with what this would write.
"""

import ast
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, CommandInfo

from cryoforum.cli import app

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES, DOCS = REPOSITORY / "src" / "cryoforum", REPOSITORY / "docs"
TREE_BEGIN, TREE_END = "<!-- tree: scripts/write_docs.py -->\n", "<!-- end of tree -->\n"


def contents() -> dict[Path, str]:
    """Every file that is written, and its content."""
    architecture = DOCS / "architecture.md"
    before, _, rest = architecture.read_text().partition(TREE_BEGIN)
    _, _, after = rest.partition(TREE_END)
    tree = f"{TREE_BEGIN}```\n{tree_of_modules()}```\n{TREE_END}"
    pages = {DOCS / "commands" / name: page for name, page in command_pages().items()}
    return pages | {architecture: before + tree + after}


def tree_of_modules() -> str:
    """One line a package or module: the first line of its docstring."""
    lines = ["src/cryoforum/"]
    for path in sorted(SOURCES.rglob("*.py"), key=_place):
        depth = len(path.relative_to(SOURCES).parts)
        if path.name == "__init__.py":
            depth, name = depth - 1, f"{path.parent.name}/"
        else:
            name = path.stem
        if depth:
            text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
            lines.append(f"{'  ' * depth + name:<28}{text.removesuffix('.')}")
    return "\n".join(lines) + "\n"


def _place(path: Path) -> tuple[tuple[bool, str], ...]:
    """Modules of a folder before its subfolders, both by name."""
    parts = path.relative_to(SOURCES).parts
    if parts[-1] == "__init__.py":
        parts = parts[:-1]
        return tuple((True, part) for part in parts)
    return (*((True, part) for part in parts[:-1]), (False, parts[-1]))


def command_pages() -> dict[str, str]:
    """A page a command by file name, and their index."""
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
    for path, content in contents().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
