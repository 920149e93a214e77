"""Assembles data sets for training: parts become batches, prepared frames a `Data`."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from snn_repro import distributed
from snn_repro.config.schema import Config
from snn_repro.data import raw
from snn_repro.data.archives import Packed
from snn_repro.data.augment import BatchTransform, RecordingAugmentation, batch_transforms, chosen
from snn_repro.data.batches import LoaderBatches, MemoryBatches, RowCheck, keep_freed_memory
from snn_repro.data.cache import Cache, Settings, open_cache
from snn_repro.data.dataset import Batches, Data, DataSet, Entry, Recorded, Split
from snn_repro.data.events import ByteFrames, Events, cut, to_frames
from snn_repro.data.recordings import find_recordings, read_entry
from snn_repro.data.splits import Indices, named_split, split_parts
from snn_repro.errors import DataError, UserError


def loader_processes(cfg: Config) -> int:
    """Worker processes: dataset.workers, or by default the spare CPU cores on a GPU, else none."""
    if cfg.dataset.workers is not None:
        return cfg.dataset.workers
    return distributed.cores() - 1 if cfg.device != "cpu" and torch.cuda.is_available() else 0


class Part(NamedTuple):
    """Part of a data set: array rows (MemoryBatches) or samples read one by one (LoaderBatches)."""

    inputs: Tensor | np.ndarray | ByteFrames | Dataset
    labels: Sequence[int] | np.ndarray = ()  # of samples: used by recipe.class_balanced only
    rows: np.ndarray | None = None  # None: all


def balanced(part: Part) -> Tensor:
    """Sampling weights that make classes equally frequent: 1 / class size in the whole array."""
    labels = np.asarray(part.labels)
    weights = torch.from_numpy(1 / np.bincount(labels)[labels])
    return weights if part.rows is None else weights[part.rows]


def assemble(
    cfg: Config, dataset: DataSet, parts: Sequence[Part], split: Split, transforms: Sequence[BatchTransform],
    evaluation: Sequence[BatchTransform] = (), check: Callable[[int, np.ndarray], None] | None = None,
) -> Data:  # fmt: skip
    """`Data` of the parts train, val and test; val may be empty.

    `transforms` are those of training, `evaluation` those of val and test. check: see MemoryBatches. Raises DataError
    if the arrays do not have the declared shape or classes of the data set.
    """
    (train, val, test), recipe, shape = parts, cfg.recipe, dataset.frame_shape(cfg.dataset.frame_size)

    def batches(part: Part, size: int, **options) -> Batches:
        inputs, labels, rows = part
        if isinstance(inputs, Dataset):
            return LoaderBatches(inputs, size, indices=rows, workers=loader_processes(cfg), **options)
        of_file = "but its file in data/sets/ declares"
        if tuple(inputs.shape[-3:]) != shape or (inputs.ndim == 4) != dataset.static:
            read = f"{'images' if inputs.ndim == 4 else 'frames'} {list(inputs.shape[-3:])}"
            raise DataError(f"{dataset.name} was read as {read}, {of_file} {list(shape)}, static={dataset.static}")
        low, high = (np.min(labels), np.max(labels)) if len(labels) else (0, 0)
        if low < 0 or high >= dataset.num_classes:
            read = f"labels {low} to {high}"
            raise DataError(f"{dataset.name} was read with {read}, {of_file} {dataset.num_classes} classes")
        return MemoryBatches(inputs, labels, size, indices=rows, check=check, **options)

    of_train = batches(
        train, recipe.batch_size, transforms=transforms, drop_last=recipe.drop_last, repeats=recipe.repeated_augmentation,
        seed=cfg.seed, shuffle=balanced(train) if recipe.class_balanced else True,
    )  # fmt: skip
    of_val = batches(val, recipe.eval_batch_size, transforms=evaluation) if val.rows is None or len(val.rows) else None
    of_test = batches(test, recipe.eval_batch_size, transforms=evaluation)
    return Data(of_train, of_val, of_test, shape, dataset.num_classes, split, dataset.static)


# ------------------------------------------------------------------ recordings


class AugmentedRecordings(torch.utils.data.Dataset):
    """Training samples decoded from raw files, for augmentations that work on events."""

    def __init__(self, settings: Settings, cfg: Config, names: list[str], steps: Sequence[RecordingAugmentation]):
        recordings = find_recordings(settings.dataset, cfg.data_dir, cfg.cache_dir)
        by_name = {s.name: s for s in recordings.samples}
        if missing := [n for n in names if n not in by_name]:
            said = f"{missing[0]} is in the cache but not in data_dir={cfg.data_dir}"
            raise DataError(f"{said}; use the folder that the cache was made from")
        self.samples = [by_name[n] for n in names]
        self.files, self.settings, self.steps = recordings.files, settings, steps

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        sample, dataset = self.samples[i], self.settings.dataset
        data = read_entry(self.files[sample.file], sample.file)
        with warnings.catch_warnings(action="ignore"):  # they were shown when the frames were prepared
            events = cut(dataset.decode(data, sample.file), sample.start, sample.stop)
        for step in self.steps:
            events = step.apply(events, dataset.shape[1:])
        frames = to_frames(events, dataset.shape[1:], *self.settings[1:])
        return torch.from_numpy(frames.astype(np.float32)), sample.label


class EventSet(Recorded):
    """Recordings of an event camera, used as frames that cache.py prepares once."""

    def split(self, cfg: Config, cache: Cache) -> tuple[Indices, Indices, Indices, Split]:
        """(training, validation, test rows of a cache, Split), drawn on the published list of recordings."""
        split, excluded = cfg.dataset.split, [*cache.excluded]
        total = self.total or len(cache.names) + len(excluded)
        there = f"{self.name}: the cache holds"
        if excluded or len(cache.names) < total:
            lacking = f"{len(cache.names)} of {total} recordings"
            warnings.warn(f"{there} {lacking}, so results do not compare with the whole data set", stacklevel=2)
        if split == "official":
            dropped = total - len(cache.names)
            train, test = (np.flatnonzero(cache.parts == part) for part in ("train", "test"))
        else:
            everything = self.all_names(cache.names, cache.labels, excluded)
            dropped = len(everything) - len(cache.names)
            train, test = named_split(self, split, cache.names, cache.labels, everything)
            if self.published_names() and len(everything) != total:
                said = f"{there} recordings that were not published, so dataset.split={split} is drawn on its own"
                warnings.warn(f"{said} list of {len(everything)} names", stacklevel=2)
        people = [who for who in map(self.person, cache.names) if who is not None]
        train, val, of_run = split_parts(
            cfg, train, test, cache.labels, [cache.names[i] for i in test], split=split, dropped=max(dropped, 0),
            people=people if len(people) == len(cache.names) else None,
        )  # fmt: skip
        return train, val, test, of_run

    def locate(self, cfg: Config) -> list[Path]:
        with contextlib.suppress(Packed):  # present, but not unpacked yet
            find_recordings(self.of(cfg), cfg.data_dir, cfg.cache_dir, unpack=False)
        return [Path(cfg.data_dir or "")]

    def cache_settings(self, cfg: Config) -> Settings:
        """Settings of the cache that a run reads."""
        return Settings(self.of(cfg), cfg.timesteps, cfg.dataset.integrate_by, cfg.dataset.frame_size)

    def check(self, cfg: Config) -> None:
        open_cache(self.cache_settings(cfg), cfg.cache_dir, cfg.data_dir)

    def state(self, cfg: Config) -> tuple[str, str | None]:
        try:
            settings = self.cache_settings(cfg)
            if cfg.cache_dir and Path(cfg.cache_dir, settings.folder, "manifest.json").is_file():
                return "ready", None
            self.locate(cfg)
        except UserError:
            return "missing", f"the data set {self.name} in data_dir, or its frames in cache_dir"
        return "not prepared", f"frames: {settings.command(cfg.data_dir, cfg.cache_dir)}"

    def fingerprint(self, cfg: Config) -> dict[str, str]:
        """{"prepared frames": SHA-256 of the cache's index, which has a checksum of every row}."""
        if not cfg.cache_dir:
            raise UserError(f"cache_dir is not set: {self.name} is read from prepared frames")
        manifest = Path(cfg.cache_dir, self.cache_settings(cfg).folder, "manifest.json")
        try:
            return {"prepared frames": json.loads(manifest.read_text())["index_sha256"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{manifest} cannot be read: {error}") from None

    def recording(self, path: str) -> Events:
        """The events of one file outside the data set. Raises DataError."""
        return self.decode(read_entry(Entry(path), path), path)

    def sample(self, cfg: Config, source: Any, say: Callable[[str], None]) -> Tensor:
        return raw.frames(self.of(cfg), cfg, self.recording(os.fspath(source)) if raw.is_path(source) else source)

    def build(self, cfg: Config) -> Data:
        keep_freed_memory()  # a batch of frames has tens of MiB
        settings = self.cache_settings(cfg)
        dataset: Any = settings.dataset
        cache = open_cache(settings, cfg.cache_dir, cfg.data_dir)
        train, val, test, of_run = dataset.split(cfg, cache)
        check = RowCheck(cache) if cfg.dataset.verify == "first_read" else None
        parts = [Part(cache.frames, cache.labels, rows) for rows in (train, val, test)]
        if steps := chosen(cfg.augment, dataset, RecordingAugmentation):
            parts[0] = Part(AugmentedRecordings(settings, cfg, cache.names, steps), cache.labels, train)
        return assemble(cfg, dataset, parts, of_run, batch_transforms(cfg.augment, dataset), check=check)
