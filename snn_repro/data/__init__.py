"""Data sets: files on disk -> frames [T, B, C, H, W] or static images [B, C, H, W], and labels."""

from collections.abc import Callable
from importlib import import_module

from snn_repro.config import Config
from snn_repro.data.batches import Batches, Data, MemoryBatches, Split

__all__ = ["DATASETS", "Batches", "Data", "MemoryBatches", "Split", "build_data"]


def _builder(module: str, function: str) -> Callable[[Config], Data]:
    """A builder of one of our own modules, imported when it is used: torchvision, PIL and numba are slow to load."""
    return lambda cfg: getattr(import_module(f"snn_repro.data.{module}"), function)(cfg)


DATASETS: dict[str, Callable[[Config], Data]] = {
    "digits": _builder("digits", "build_digits"),
    "digits_dvs": _builder("digits", "build_digits_dvs"),
    "fashion_mnist": _builder("static", "build_fashion_mnist"),
    "fashion_mnist_dvs": _builder("fashion_dvs", "build_fashion_mnist_dvs"),
    "cifar10": _builder("static", "build_cifar10"),
    "cifar100": _builder("static", "build_cifar100"),
    "imagenet100": _builder("static", "build_imagenet100"),
    "imagenet1k": _builder("static", "build_imagenet1k"),
    "cifar10_dvs": _builder("event_sets", "build_cifar10_dvs"),
    "dvs_gesture": _builder("event_sets", "build_dvs_gesture"),
    "ncaltech101": _builder("event_sets", "build_ncaltech101"),
}


def build_data(cfg: Config) -> Data:
    """The data set that `cfg.dataset` names, ready to train on.

    Raises DataError with one sentence (which file, where it was expected, where its authors publish it).
    """
    return DATASETS[cfg.dataset.name](cfg)
