"""Data flows one way: no module imports from its right."""

import ast
from pathlib import Path

import snn_repro

ORDER = [
    "errors", "distributed", "console", "outside", "provenance", "files", "settings", "registry",
    "kernels", "config", "neurons", "models", "data", "losses", "metrics", "optim", "energy", "build", "runtime", "runs", "trained/load",
    "train", "dry_run", "trained", "cli", "paper", "report", "__main__",
]  # fmt: skip
ROOT = Path(snn_repro.__file__).parent


def imports(path: Path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only a type checker imports is no import, nor what only a program does
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "snn_repro":
            parts = node.module.split(".")
            file = "/".join(parts[1:3])
            yield from (
                [file if file in ORDER else parts[1]]
                if len(parts) > 1
                else [a.name for a in node.names if a.name != "__version__"]
            )
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("snn_repro.")]


def test_imports_go_from_left_to_right():
    for path in ROOT.rglob("*.py"):
        file = path.relative_to(ROOT).as_posix().removesuffix(".py")
        room = file if file in ORDER else file.split("/")[0]
        if room == "__init__":
            continue
        assert room in ORDER, f"{room} has no place in the order yet"
        for used in imports(path):
            assert ORDER.index(used) <= ORDER.index(room), f"{path.name} imports {used}, which lies to its right"


def test_training_does_not_know_tables_and_figures():
    used = set(imports(ROOT / "train.py"))
    assert "paper" not in used


def test_the_configuration_starts_without_torch():
    heavy = {"torch", "wandb", "numpy", "spikingjelly", "timm", "tonic"}
    for path in (
        *(ROOT / f"{name}.py" for name in ("__init__", "errors", "files", "registry")),
        *ROOT.glob("config/*.py"),
    ):
        tree = ast.parse(path.read_text())
        top = {a.name.split(".")[0] for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        top |= {(n.module or "").split(".")[0] for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert not top & heavy, path


def test_no_module_needs_spikingjelly_datasets():
    assert not [p for p in ROOT.rglob("*.py") if "spikingjelly.datasets" in p.read_text()]
