"""Ways out of snn_repro: a trained network in the format of other tools, each a folder with a model card.

    export("runs/NAME/seed0", "onnx")        # -> runs/NAME/seed0/export/onnx

One format is one file in this folder, its first line the help. It has `write(run, folder) -> str` under
`@EXPORTS.register("its name")`, which writes its files into the empty `folder` and returns what the model card says about how to use
them, in Markdown. It raises UserError where the format cannot say what the network does.
"""

import ast
import contextlib
import importlib
import os
import pkgutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from snn_repro.errors import Interrupted, UserError, handled_by, nearest
from snn_repro.files import write_error
from snn_repro.registry import EXPORTS
from snn_repro.trained.export._card import CARD, START, card

if TYPE_CHECKING:
    from snn_repro.trained.load import TrainedRun

__all__ = ["export", "help_of", "names"]


def names() -> list[str]:
    """The formats: files of this folder, and what packages from outside have registered."""
    own = (module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return sorted({*own, *EXPORTS})


def help_of(name: str) -> str:
    """The first line of a format's file, read without importing what it needs; of its function, from outside."""
    file = Path(__file__).with_name(f"{name}.py")
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) if file.exists() else EXPORTS[name].__doc__
    return (text or "").partition("\n")[0]


def format_named(name: str) -> Callable[["TrainedRun", Path], str]:
    """What writes a format. Raises UserError for another, and where a package that it needs is not installed."""
    if name not in names():
        raise UserError(f"--to {name} is no format; choose one of: {', '.join(names())}{nearest(name, names())}")
    try:
        if Path(__file__).with_name(f"{name}.py").exists():
            importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise UserError(f"--to {name} needs {error.name}: pip install 'snn_repro[export]'") from None
    return EXPORTS[name]


def export(
    path: str | Path, to: str, weights: str = "last", output: str | Path | None = None, force: bool = False
) -> Path:
    """Write the network of a finished run as `to` (see `names`) into the folder `output`, RUN/export/<to> where nothing is said.

    weights: "last" or "best", as of `load_run`. The folder appears whole or not at all; one that is there is refused, unless
    `force`. Returns it. Raises UserError where the run is not finished, the format cannot say what the network does, or the
    folder is there or cannot be written.
    """
    from snn_repro.trained.load import load_run

    write = format_named(to)
    run = load_run(path, weights)
    if run.result is None:
        raise UserError(
            f"{path} is not finished: it has no result.json for the model card; give its command again first"
        )
    target = Path(output) if output else Path(path) / "export" / to
    place = Path(os.path.realpath(target))  # a link stays, and what it names is written
    if os.path.lexists(target) and not force:
        raise UserError(
            f"{target} is there already; write it anew with --force, or choose another folder with --output"
        )
    if os.path.lexists(target) and not _is_export(target):
        raise UserError(f"{target} was not written by an export, so --force leaves it alone; choose another --output")
    missing = [folder for folder in place.parents if not folder.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with (
            handled_by(_interrupted),
            tempfile.TemporaryDirectory(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent) as spare,
        ):
            folder, former = Path(spare, "new"), Path(spare, "former")
            folder.mkdir()
            with contextlib.suppress(UserError):  # what an older run did not keep goes with it, where it is known
                run.facts()
            use = write(run, folder)
            (folder / CARD).write_text(card(run, to, use), encoding="utf-8")
            _open_up(folder)
            if place.exists():
                place.rename(former)
            folder.rename(place)
    except OSError as error:
        raise write_error(target, error, "--output") from None
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # all but empty ones stay
                made.rmdir()
    return target


def _interrupted(signum: int, frame: object) -> None:
    raise Interrupted(signum, f"stopped by {signal.Signals(signum).name}, nothing was written")


def _is_export(folder: Path) -> bool:
    """Whether nothing but an export is in a folder: its own card, and files."""
    try:
        return (folder / CARD).read_text("utf-8").startswith(START) and all(f.is_file() for f in folder.iterdir())
    except (OSError, ValueError):
        return False


def _open_up(folder: Path) -> None:
    """Let others read what safetensors made for its owner alone, as far as the umask allows."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)
