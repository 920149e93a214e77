"""`torchvision.transforms`, imported at its first use: it takes longer than all else that `--help` imports."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    return import_module(f"torchvision.transforms.{name}")
