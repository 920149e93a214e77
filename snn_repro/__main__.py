"""`python -m snn_repro`: list every command of the project with a one-line description."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from snn_repro import console
from snn_repro.config import CONF_DIR

PACKAGE = Path(__file__).resolve().parent
SCRIPTS = CONF_DIR.parent / "scripts"  # in a clone; a wheel has none


def purpose(file: Path) -> str:
    """First line of a module's docstring, read without importing the module (which would import torch)."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n")[0]


def commands() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (title, {command: description}) of console scripts, modules and scripts."""
    installed = {}
    for entry in sorted(entry_points(group="console_scripts")):
        if entry.module.startswith(f"{PACKAGE.name}."):
            place = PACKAGE.parent.joinpath(*entry.module.split("."))
            installed[entry.name] = purpose(place / "__init__.py" if place.is_dir() else place.with_suffix(".py"))
    yield "commands", installed
    modules = {
        f"python -m {'.'.join(file.relative_to(PACKAGE.parent).with_suffix('').parts)}": purpose(file)
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.name != "__main__.py" and '\nif __name__ == "__main__":' in file.read_text("utf-8")
    }
    yield "modules", modules
    yield "scripts, in a clone", {f"python scripts/{file.name}": purpose(file) for file in sorted(SCRIPTS.glob("*.py"))}


def main() -> int:
    """Print every command with its description."""
    print("Commands of snn_repro; commands and scripts accept --help.")
    for title, listed in commands():
        if listed:
            width = max(map(len, listed))
            print("\n".join(["", f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in listed.items())]))
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
