"""`event_folder`: users' event recordings in class folders, prepared by scripts/prepare_data.py.

    data_dir/<class>/*.npz                   dataset.test_share (0.2) of each class tests, drawn with dataset.split_seed
    data_dir/{train,test}/<class>/*.npz      folders are parts; val/<class>/, if present, is the validation part

Files and their columns: see data/formats.py. The sensor's size is dataset.sensor=[height,width], or found during
preparation: the largest that a file declares, or that its coordinates need if it declares none.
"""

import copy
import json
import os
import re
from pathlib import Path

from snn_repro.console import progress
from snn_repro.data.build import EventSet
from snn_repro.data.cache import Settings
from snn_repro.data.dataset import Sample, register
from snn_repro.data.formats import SUFFIXES, read_recording
from snn_repro.data.image_files import class_folders
from snn_repro.data.own import SETTINGS, common_classes, layout, own_split, parts_of
from snn_repro.data.recordings import find_recordings, read_entry
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting


@register("event_folder")
class EventFolder(EventSet):
    """Users' recordings in class folders."""

    root: Path  # set where `of` binds the set to a folder
    label_names = ()
    own = True
    splits = ("official",)
    settings = SETTINGS | {
        "sensor": Setting((0, 0), "height and width of the sensor; [0,0]: found by prepare_data.py", "pixels", low=0)
    }
    expected = "class folders with recordings"
    depth = 9  # names are relative to data_dir, at any depth

    # -- facts found in the files

    def of(self, cfg):
        """Bound to data_dir; classes come from the run, else data_dir, else the cache."""
        given = tuple(cfg.dataset.sensor)
        if any(given) and not all(given):
            raise UserError(f"dataset.sensor={list(given)} must be [height,width], both above 0, or [0,0] to find it")
        known = cfg.dataset.found or self._made(cfg)
        classes = known.get("classes")
        if not cfg.dataset.found and (not classes or Path(cfg.data_dir or "").is_dir()):
            parts = layout(cfg.data_dir, "recordings")
            classes = common_classes(Path(cfg.data_dir), {part: class_folders(path) for part, path in parts.items()})
        arguments = f" 'dataset.sensor=[{given[0]},{given[1]}]'" if any(given) else ""
        return self._bound(cfg.data_dir, classes, given if any(given) else known.get("sensor"), arguments)

    def _bound(self, data_dir, classes, sensor, arguments=""):
        found, root = copy.copy(self), Path(os.path.abspath(data_dir or ""))
        vars(found).update(
            {"shape": (2, *sensor)} if sensor else {},
            root=root,
            num_classes=len(classes),
            label_names=tuple(classes),
            folders=(self.name, root.name),
            arguments=arguments,
            found={"classes": list(classes), "sensor": sensor and list(sensor)},
        )
        return found

    def _made(self, cfg) -> dict:
        """Classes and sensor in the manifest of the configured cache; {} without one."""
        named = self._bound(cfg.data_dir, (), None)
        settings = Settings(named, cfg.timesteps, cfg.dataset.integrate_by, cfg.dataset.frame_size)
        try:
            made = json.loads(Path(cfg.cache_dir or "", settings.folder, "manifest.json").read_text())
            return {"classes": list(made["classes"]), "sensor": tuple(made["sensor"])}
        except (OSError, ValueError, KeyError, TypeError):  # reported when the cache is opened
            return {}

    @property
    def cache_name(self):
        return f"{self.name}/{self.root.name}"

    def frame_shape(self, frame_size=None):
        if frame_size:
            return 2, frame_size, frame_size
        if not hasattr(self, "shape"):
            raise UserError(
                f"the sensor's size of {self.name} is known once its recordings are prepared: run"
                f" `python scripts/prepare_data.py dataset={self.name} data_dir=DIR cache_dir=DIR`,"
                " or give dataset.sensor=[height,width]"
            )
        return self.shape

    def measured(self, data_dir, say):
        if self.arguments:
            return self
        files, sizes, problems = find_recordings(self, data_dir).files, [], []
        with progress("recordings read for the sensor's size", len(files), say) as advance:
            for n, (name, entry) in enumerate(sorted(files.items()), 1):
                try:
                    (_, x, y, _), size = read_recording(read_entry(entry, name), name)
                    sizes += [size] if size else [(int(y.max()) + 1, int(x.max()) + 1)] if len(x) else []
                except DataError as error:  # the preparation reports it
                    problems.append(error)
                advance(n)
        if not sizes:
            raise DataError(f"no recording in data_dir={data_dir} can be read: {[*problems, 'they hold no events'][0]}")
        height, width = (max(side) for side in zip(*sizes, strict=True))
        say(
            f"the sensor has {height} x {width} pixels (height x width), the most that a recording declares or reaches;"
            " if this is wrong, set dataset.sensor=[height,width]"
        )
        return self._bound(data_dir, self.label_names, (height, width))

    def listing(self, files):
        parts = layout(str(self.root), "recordings")
        folders = {
            f"{path.name}/{c}" if part else c: (k, part)
            for part, path in parts.items()
            for k, c in enumerate(self.label_names)
        }
        samples, problems, empty = [], {}, set(folders)
        for name in (n for n in files if Path(n).suffix.lower() in SUFFIXES):
            folder = "/".join(name.split("/")[: 1 if "" in parts else 2])
            if folder in folders and (re.search(r'[,":]', name) or not name.isprintable()):
                problems[name] = (
                    f"{name!r} holds a comma, a quotation mark, a colon or an unprintable character; rename it"
                )
            elif folder in folders:
                samples.append(Sample(name, name, *folders[folder]))
            empty.discard(folder)
        if empty:
            raise DataError(f"{self.root / min(empty)} holds no recording; they end in {', '.join(SUFFIXES)}")
        return samples, problems

    def decode(self, data, name):
        return read_recording(data, name)[0]

    # -- parts

    def split(self, cfg, cache):
        names, labels, excluded = list(cache.names), cache.labels.tolist(), [*cache.excluded]
        if not any(cache.parts):  # drawn with the excluded ones, so that a bad recording moves no other
            labels += [self.label_names.index(n.split("/")[0]) for n in excluded]
            names += excluded
        split, parts = parts_of(cfg, [*map(str, cache.parts), *[""] * (len(names) - len(cache.names))], names, labels)
        return own_split(cfg, split, parts[: len(cache.names)], cache.names, cache.labels, len(excluded))
