"""The budget of the house: lines, statements, files, lengths, imports. An addition pays for itself by what it replaces."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "snn_repro"
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
LINES, STATEMENTS, FILES, TEST_LINES = 22_000, 13_900, 165, 19_500
FUNCTION_LINES, PARAMETERS, TRAIN_LINES, CONFIG_FILES = 60, 8, 450, 14


def sources(folder: Path = PACKAGE) -> dict[str, str]:
    """{path below the repository: text} of a folder's Python files."""
    return {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in sorted(folder.rglob("*.py"))}


TEXTS = sources()
TREES = {path: ast.parse(text) for path, text in TEXTS.items()}


def lines(texts: dict[str, str]) -> int:
    return sum(len(text.splitlines()) for text in texts.values())


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(path: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, inside functions too; packages above them are not counted."""
    package = module(path) if path.endswith("__init__.py") else module(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known:
                    yield inner
                elif base in known:
                    yield base


def long_functions() -> list[str]:
    found = []
    for path, tree in TREES.items():
        if path.startswith("snn_repro/kernels/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, FUNCTIONS):
                a = node.args
                count = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs)
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > FUNCTION_LINES or count > PARAMETERS:
                    found.append(f"{path}:{node.lineno} {node.name}: {length} lines, {count} parameters")
    return found


def test_the_package_keeps_its_size():
    statements = sum(isinstance(node, ast.stmt) for tree in TREES.values() for node in ast.walk(tree))
    assert lines(TEXTS) <= LINES
    assert statements <= STATEMENTS
    assert len(TEXTS) <= FILES
    assert len(TEXTS["snn_repro/train.py"].splitlines()) <= TRAIN_LINES


def test_the_tests_keep_their_size():
    assert lines(sources(ROOT / "tests")) <= TEST_LINES


def test_functions_are_short():
    assert not long_functions()


def test_no_module_imports_itself_through_others():
    known = {module(path) for path in TREES}
    graph = {module(path): set(imported(path, tree, known)) - {module(path)} for path, tree in TREES.items()}
    TopologicalSorter(graph).prepare()  # CycleError names a circle


def test_a_configuration_enters_few_files():
    code = """
import sys
from snn_repro.config import load_config
seen = set()
def watch(frame, event, _):
    if event == "call":
        seen.add(frame.f_code.co_filename)
sys.setprofile(watch)
load_config(["experiment=table1_cifar10_sdt", "seed=1"])
sys.setprofile(None)
print(*sorted(f for f in seen if "snn_repro" in f), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    files = [f for f in done.stdout.split("\n") if str(PACKAGE) in f]
    assert 0 < len(files) <= CONFIG_FILES, files
