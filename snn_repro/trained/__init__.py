"""What is done with a trained network: load it, test it again, ask it, hand it on to other tools."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snn_repro.trained.load import TrainedRun, load_run

__all__ = ["TrainedRun", "load_run"]


def __getattr__(name: str) -> Any:  # torch takes seconds to import, which a command's --help does without
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from snn_repro.trained import load

    return getattr(load, name)
