"""What the classes of a Python file declare, read from its text: importing it would import torch, which --help has no time for."""

import __future__

import ast
import importlib
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PACKAGE = Path(__file__).resolve().parent


class Source(dict[str, Any]):
    """The top-level names of a file, each evaluated when it is asked for, alone; of a class, its `settings`.

    What it imports from this package is read in the same way, unless it is imported already. A name that needs torch, say,
    is none: NameError.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.nodes: dict[str, tuple[ast.stmt, str]] = {}  # name -> where it comes from, and what it is called there
        self.decorated: list[tuple[ast.Call, ast.ClassDef | ast.FunctionDef]] = []
        for node in ast.parse(path.read_text("utf-8")).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    self.nodes[name] = node, name
                case ast.ImportFrom():
                    self.nodes |= {a.asname or a.name: (node, a.name) for a in node.names}
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    self.nodes[name] = node, name
                    self.decorated += [(d, node) for d in node.decorator_list if isinstance(d, ast.Call)]

    def __missing__(self, name: str) -> Any:
        node, theirs = self.nodes[name]  # KeyError: a builtin, or nobody's
        match node:
            case ast.ImportFrom(module=str(module), level=0):
                self[name] = _imported(module, theirs)
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                self[name] = self.evaluate(value)
            case ast.FunctionDef():
                alone = ast.FunctionDef(**{**vars(node), "decorator_list": []})
                flags = __future__.annotations.compiler_flag
                exec(compile(ast.Module([alone], []), "<declared>", "exec", flags), self)
            case ast.ClassDef(body=body, bases=bases):
                own = [s.value for s in body if isinstance(s, ast.Assign | ast.AnnAssign) and _target(s) == "settings"]
                self[name] = SimpleNamespace(settings=self.evaluate(own[0] or ast.Dict([], [])) if own
                                             else self.evaluate(bases[0]).settings)  # fmt: skip
        return self[name] if name in self else {}[name]

    def evaluate(self, expression: ast.expr) -> Any:
        return eval(compile(ast.Expression(expression), "<declared>", "eval"), self)


def _target(node: ast.Assign | ast.AnnAssign) -> str | None:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    return target.id if isinstance(target, ast.Name) else None


def _imported(module: str, name: str) -> Any:
    top, *inner = module.split(".")
    if module not in sys.modules and top == PACKAGE.name:
        path = PACKAGE.joinpath(*inner)
        return read(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))[name]
    if module in sys.modules or top in sys.stdlib_module_names:
        return getattr(importlib.import_module(module), name)
    raise KeyError(module)


@cache
def read(path: Path) -> Source:
    return Source(path)


def declared(path: Path, decorator: str, origin: str = "") -> dict[str, tuple[Source, ast.expr | str]]:
    """{name: what `settings_of` takes} of what stands under `@decorator("name", ...)` in a file.

    origin: the beginning of the module's name that the file imports the decorator from. {}: nothing, or no Python.
    """
    try:
        source = read(path)
    except (OSError, ValueError, SyntaxError):
        return {}
    found: dict[str, tuple[Source, ast.expr | str]] = {}
    for call, node in source.decorated:
        match call:
            case ast.Call(func=ast.Name(id=word), args=[ast.Constant(value=str(name)), *more]):
                imported, theirs = source.nodes.get(word, (None, word))
                module = imported.module or "" if isinstance(imported, ast.ImportFrom) else ""
                if theirs == decorator and module.startswith(origin):
                    found[name] = source, more[0] if more else node.name
    return found


def settings_of(source: Source, what: ast.expr | str) -> Any:
    """The settings of a class by its name, or those that its decorator was given. Raises whatever evaluating them does."""
    return source[what].settings if isinstance(what, str) else source.evaluate(what)
