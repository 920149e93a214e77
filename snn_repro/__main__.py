"""`python -m snn_repro`: every command of this project with what it does, one line each."""

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
    """The first line of a module's docstring. The module is read and not imported: that would take torch."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").split("\n")[0]


def commands() -> Iterator[tuple[str, dict[str, str]]]:
    """(title, {command: what it does}) of console scripts, modules and the scripts of a clone, found where they lie."""
    installed = {}
    for entry in sorted(entry_points(group="console_scripts")):
        if entry.module.startswith(f"{PACKAGE.name}."):
            place = PACKAGE.parent.joinpath(*entry.module.split("."))
            installed[entry.name] = purpose(place / "__init__.py" if place.is_dir() else place.with_suffix(".py"))
    yield "commands", installed
    programs = [
        f
        for f in sorted(PACKAGE.rglob("*.py"))
        if f.name != "__main__.py" and '\nif __name__ == "__main__":' in f.read_text("utf-8")
    ]
    names = {f: ".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in programs}
    yield "modules", {f"python -m {name}": purpose(file) for file, name in names.items()}
    yield "scripts, in a clone", {f"python scripts/{file.name}": purpose(file) for file in sorted(SCRIPTS.glob("*.py"))}


def main() -> int:
    print("What there is to type; commands and scripts say more with --help.")
    for title, found in commands():
        if found:
            width = max(map(len, found))
            print("\n".join(["", f"{title}:", *(f"  {name:<{width}}  {line}" for name, line in found.items())]))
    return 0


if __name__ == "__main__":
    sys.exit(console.script(main))
