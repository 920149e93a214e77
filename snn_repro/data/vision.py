"""`torchvision.transforms`, imported at its first use, as it would double the time of `--help`."""

from importlib import import_module
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    return import_module(f"torchvision.transforms.{name}")
