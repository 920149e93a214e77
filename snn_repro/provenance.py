"""Of which code a result is: the commit, and a hash over the sources that compute a run's numbers."""

import ast
import hashlib
import json
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from snn_repro import outside

PACKAGE = Path(__file__).parent

# What computes the numbers of a run, with the data files it reads. Configurations stand in each result as they are.
SOURCES = (
    "data", "distributed.py", "kernels", "losses", "metrics.py", "models", "neurons", "optim.py", "registry.py",
    "runs/checkpoint.py", "runs/result.py", "runtime.py", "settings.py", "train.py",
)  # fmt: skip
# Top-level names of a source that only speak, or start a run: a change of these changes no number.
NOT_COUNTED = {
    "runs/result.py": (
        "HINTS", "KEYS", "MAY_LACK", "NEEDED", "NotStrict", "RunResult", "_complaint", "_no_number", "_plain", "epoch_line", "percent",
        "read_result", "summary", "table",
    ),
    "runtime.py": ("peak_memory", "profiler"),
    "train.py": (
        "COUNTING", "count_later", "count_operations", "counts_for_little", "energy", "log", "open_folder", "recorded", "repeated", "run",
        "write_neurobench",
    ),
}  # fmt: skip


def code_version() -> dict[str, Any]:
    """`dict(commit, dirty, sha256)` of the code that runs; commit and dirty are None outside a repository.

    The hash is over SOURCES without comments, docstrings, formatting and the words of errors, and is the same under
    every version of Python. It is taken once in a process: of the files as they were then.
    """
    commit, dirty = git_state()
    return dict(commit=commit, dirty=dirty, sha256=source_hash())


@cache
def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether a tracked file differs from it); (None, None) where the package is no part of a repository."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed: a repository around it is not ours
        return None, None
    status = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *args], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def source_hash(package: Path = PACKAGE) -> str:
    """SHA-256 (hex) over SOURCES under `package`, and for ours over the modules of packages that add to it."""
    total = hashlib.sha256()
    for path in sources(package):
        name = path.relative_to(package).as_posix()
        content = path.read_bytes()
        if path.suffix == ".py":
            content = normalised(content, NOT_COUNTED.get(name, ())).encode("utf-8", "surrogatepass")
        total.update(f"{name}:{len(content)}\n".encode() + content)
    for name, path in outside.sources() if package == PACKAGE else ():
        content = normalised(path.read_bytes(), ()).encode("utf-8", "surrogatepass")
        total.update(f"{name}:{len(content)}\n".encode() + content)
    return total.hexdigest()


SAME = PACKAGE.parent / "results" / "same_code.json"


@cache
def same_code(file: Path = SAME) -> frozenset[str]:
    """Hashes of all code that is known to compute the numbers that today's does, its own among them.

    The others are those of `results/same_code.json`, a list of {"before", "after", "runs", "date"}: pairs of which
    tests/same_numbers.py found the numbers of so many runs equal to the last bit, on one machine.
    """
    found = {source_hash()}
    pairs = json.loads(file.read_text()) if file.exists() else []
    while more := {pair["before"] for pair in pairs if pair["after"] in found} - found:
        found |= more
    return frozenset(found)


def sources(package: Path = PACKAGE) -> list[Path]:
    """The files of SOURCES, sorted by their place in the package."""
    found = []
    for place in (package / name for name in SOURCES):
        files = [place] if place.is_file() else place.rglob("*")
        found += [
            p
            for p in files
            if p.is_file() and "__pycache__" not in p.parts and p.suffix not in (".pyc", ".tmp") and p.name[0] != "."
        ]
    return sorted(found, key=lambda p: p.relative_to(package).as_posix())


def normalised(source: str | bytes, without: tuple[str, ...] = ()) -> str:
    """What Python source does, as text: its syntax tree without docstrings, empty fields and the words of errors.

    `without`: top-level names whose definitions do not count.
    """
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not without or not _defines(node, without)]
    return "".join(_walk(tree))


def _defines(node: ast.stmt, names: tuple[str, ...]) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return all(isinstance(t, ast.Name) and t.id in names for t in targets)
    return getattr(node, "name", None) in names


_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _walk(node: Any) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        # not repr() of a text, which escapes more or less with each Unicode version
        yield f"'{len(node.value)}:{node.value}'" if isinstance(node.value, str) else repr(node.value)
        return
    yield type(node).__name__
    yield "("
    for name in node._fields:
        value = getattr(node, name, None)
        if value is None or value == [] or name in ("ctx", "type_comment"):
            continue
        if name == "body" and isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            value = value[1:]
        if name == "exc" and isinstance(value, ast.Call):
            value = value.func
        yield name
        yield "="
        if isinstance(value, list):
            yield "["
            for item in value:
                yield from _walk(item) if isinstance(item, ast.AST) else (repr(item),)
                yield ","
            yield "]"
        elif isinstance(value, ast.AST):
            yield from _walk(value)
        else:
            yield repr(value)
    yield ")"
