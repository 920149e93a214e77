"""What the classes of a Python file declare, read from its text: importing it would import torch, which --help has no time for.

Nothing of the file runs. Only plain expressions are understood: constants, names, containers, arithmetic, and calls of what
makes settings or of a function that only returns an expression; with anything else (Unread) the caller has to import the module.
"""

import ast
import operator
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

from snn_repro.settings import Setting, shared

PACKAGE = Path(__file__).resolve().parent
OPERATORS = {ast.BitOr: operator.or_, ast.Add: operator.add, ast.Mult: operator.mul, ast.Div: operator.truediv}
CALLED = (Setting, dict, partial, replace, shared)


class Unread(Exception):
    """An expression that says too little without running the file."""


class Function(NamedTuple):
    """A function, whose names are those of its own file."""

    source: "Source"
    node: ast.FunctionDef


class Source(dict[str, Any]):
    """The top-level names of a file, each evaluated when it is asked for; a class is there for its `settings`.

    What the file imports from this package is read in the same way, unless it is imported already.
    """

    def __init__(self, path: Path):
        super().__init__(dict=dict)
        self.nodes: dict[str, tuple[ast.stmt, str]] = {}  # name -> where it comes from, and what it is called there
        self.decorated: list[tuple[ast.expr, str]] = []  # decorator, class or function
        for node in ast.parse(path.read_text("utf-8")).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    self.nodes[name] = node, name
                case ast.ImportFrom(level=0):
                    self.nodes |= {a.asname or a.name: (node, a.name) for a in node.names}
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    self.nodes[name] = node, name
                    self.decorated += [(decorator, name) for decorator in node.decorator_list]

    def __missing__(self, name: str) -> Any:
        node, theirs = self.nodes.get(name, (None, name))
        match node:
            case ast.ImportFrom(module=str(module)):
                self[name] = _imported(module, theirs)
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                self[name] = self.evaluate(value)
            case ast.FunctionDef():
                self[name] = Function(self, node)
            case ast.ClassDef(body=body, bases=bases):
                own = [s.value for s in body if isinstance(s, ast.Assign | ast.AnnAssign) and _target(s) == "settings"]
                inherited = None if own or not bases else self.evaluate(bases[0]).settings
                self[name] = SimpleNamespace(settings=self.evaluate(own[0]) if own and own[0] else inherited)
            case _:
                raise Unread(name)
        return self[name]

    def evaluate(self, expression: ast.expr, known: dict[str, Any] | None = None) -> Any:
        """The value of an expression; `known` holds the arguments of the function that it is in. Raises Unread."""
        known = known or {}

        def value(node: ast.expr) -> Any:
            match node:
                case ast.Constant(value=constant):
                    return constant
                case ast.Name(id=name):
                    return known[name] if name in known else self[name]
                case ast.Attribute(value=owner, attr=name):
                    return getattr(value(owner), name)
                case ast.UnaryOp(op=ast.USub(), operand=operand):
                    return -value(operand)
                case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                    return OPERATORS[type(op)](value(left), value(right))
                case ast.Tuple(elts=parts):
                    return tuple(map(value, parts))
                case ast.List(elts=parts):
                    return [*map(value, parts)]
                case ast.Dict(keys=keys, values=values):
                    return merged((k and value(k), value(v)) for k, v in zip(keys, values, strict=True))
                case ast.Call(func=function, args=args, keywords=keywords):
                    called, given = value(function), [*map(value, args)]
                    named = merged((k.arg, value(k.value)) for k in keywords)
                    match called:
                        case Function(
                            source,
                            ast.FunctionDef(
                                args=ast.arguments(args=arguments, kwarg=rest),
                                body=[ast.Return(value=ast.expr() as result)]
                                | [ast.Expr(), ast.Return(value=ast.expr() as result)],
                            ),
                        ):
                            names = [a.arg for a in arguments]
                            bound = dict(zip(names, given, strict=False)) | named
                            others = {k: bound.pop(k) for k in bound.keys() - set(names)}
                            return source.evaluate(result, bound | ({rest.arg: others} if rest else {}))
                    if (called.func if isinstance(called, partial) else called) in CALLED:
                        return called(*given, **named)
            raise Unread(ast.unparse(node))

        return value(expression)


def merged(pairs: Any) -> dict:
    """A dictionary of (key, value); a value without key is one to unpack."""
    found: dict = {}
    for k, v in pairs:
        found |= v if k is None else {k: v}
    return found


def _target(node: ast.Assign | ast.AnnAssign) -> str | None:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    return target.id if isinstance(target, ast.Name) else None


def _imported(module: str, name: str) -> Any:
    top, *inner = module.split(".")
    if module in sys.modules:
        found = getattr(sys.modules[module], name)
        if top != PACKAGE.name or not isinstance(found, FunctionType) or found in CALLED:
            return found  # functions of ours are read all the same: they do not run
    if top != PACKAGE.name:
        raise Unread(module)
    path = PACKAGE.joinpath(*inner)
    return read(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))[name]


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
    for call, owner in source.decorated:
        match call:
            case ast.Call(func=ast.Name(id=word), args=[ast.Constant(value=str(name)), *more]):
                imported, theirs = source.nodes.get(word, (None, word))
                module = imported.module or "" if isinstance(imported, ast.ImportFrom) else ""
                if theirs == decorator and module.startswith(origin):
                    found[name] = source, more[0] if more else owner
    return found


def settings_of(source: Source, what: ast.expr | str) -> dict[str, Setting]:
    """The settings of a class by its name, or those that its decorator was given. Raises Unread, or what making them raises."""
    return source[what].settings if isinstance(what, str) else source.evaluate(what)
