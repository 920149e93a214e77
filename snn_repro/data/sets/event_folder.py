"""`event_folder`: recordings of an event camera of your own in class folders, prepared once by scripts/prepare_data.py.

    data_dir/<class>/*.npz                           dataset.test_share (0.2) of each class tests, drawn with dataset.split_seed
    data_dir/train/<class>/*.npz, test/<class>/      the folders say it; val/<class>/ is the validation part, where there is one

Files and their columns: see data.formats.py. The sensor's size is dataset.sensor=[height,width], or found when the
recordings are prepared: the largest that a file says, or that its coordinates need where it says none.
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
from snn_repro.data.own import SETTINGS, common_classes, folders_in, layout, own_split, parts_of
from snn_repro.data.recordings import find_recordings, read_entry
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting


@register("event_folder")
class EventFolder(EventSet):
    root: Path  # of those that `of` has bound to a folder
    label_names = ()
    own = draws_test = True
    splits = ("official",)
    settings = SETTINGS | {
        "sensor": Setting((0, 0), "height and width of the sensor; [0,0]: found by prepare_data.py", "pixels", low=0)
    }
    expected = "class folders with recordings"
    depth = 9  # names are relative to data_dir, whatever folders a class has inside

    # -- what is found

    def of(self, cfg):
        """Bound to data_dir. Classes are a run's own, else those of data_dir, or of the cache where data_dir is gone."""
        given = tuple(cfg.dataset.sensor)
        if any(given) and not all(given):
            raise UserError(
                f"dataset.sensor={list(given)} must be [height,width], both above 0, or [0,0] to have it found"
            )
        known = cfg.dataset.found or self._made(cfg)
        classes = known.get("classes")
        if not cfg.dataset.found and (not classes or Path(cfg.data_dir or "").is_dir()):
            parts = layout(cfg.data_dir, "recordings")
            classes = common_classes(Path(cfg.data_dir), {k: [p.name for p in folders_in(f)] for k, f in parts.items()})
        found = self._bound(cfg.data_dir, classes, given if any(given) else known.get("sensor"))
        found.arguments = f" 'dataset.sensor=[{given[0]},{given[1]}]'" if any(given) else ""
        return found

    def _bound(self, data_dir, classes, sensor):
        found = copy.copy(self)
        found.root, found.num_classes, found.label_names = (
            Path(os.path.abspath(data_dir or "")),
            len(classes),
            tuple(classes),
        )
        found.folders = (self.name, found.root.name)
        found.found = {"classes": list(classes), "sensor": sensor and list(sensor)}
        if sensor:
            found.shape = (2, *sensor)
        return found

    def _made(self, cfg) -> dict:
        """The manifest of the cache that the configuration reads, which has classes and sensor; {} without one."""
        named = self._bound(cfg.data_dir, (), None)
        settings = Settings(named, cfg.timesteps, cfg.dataset.integrate_by, cfg.dataset.frame_size)
        try:
            made = json.loads(Path(cfg.cache_dir or "", settings.folder, "manifest.json").read_text())
            return {"classes": list(made["classes"]), "sensor": tuple(made["sensor"])}
        except (OSError, ValueError, KeyError, TypeError):  # said when the cache is opened
            return {}

    @property
    def cache_name(self):
        return f"{self.name}/{self.root.name}"

    def frame_shape(self, frame_size=None):
        if frame_size:
            return 2, frame_size, frame_size
        if not hasattr(self, "shape"):
            raise UserError(
                f"the sensor's size of {self.name} is known once its recordings are prepared: run `python"
                f" scripts/prepare_data.py dataset={self.name} data_dir=DIR cache_dir=DIR`, or give dataset.sensor=[height,width]"
            )
        return self.shape

    def measured(self, data_dir, say):
        found = copy.copy(self)
        if found.arguments:
            return found
        files, sizes, problems = find_recordings(found, data_dir).files, [], []
        with progress("recordings were looked at for the sensor's size", len(files), say) as advance:
            for n, (name, entry) in enumerate(sorted(files.items()), 1):
                try:
                    (_, x, y, _), size = read_recording(read_entry(entry, name), name)
                    sizes += [size] if size else [(int(y.max()) + 1, int(x.max()) + 1)] if len(x) else []
                except DataError as error:  # of which the preparation tells
                    problems.append(error)
                advance(n)
        if not sizes:
            why = problems[0] if problems else "they hold no events"
            raise DataError(f"not one recording in data_dir={data_dir} can be read: {why}")
        height, width = (max(side) for side in zip(*sizes, strict=True))
        say(
            f"the sensor has {height} x {width} pixels (height x width), the most that a recording says or reaches; where it"
            " has others, give dataset.sensor=[height,width]"
        )
        return found._bound(data_dir, found.label_names, (height, width))

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
                problems[name] = f"{name!r} holds a comma, a quotation mark, a colon or an unprintable sign; rename it"
            elif folder in folders:
                samples.append(Sample(name, name, *folders[folder]))
            empty.discard(folder)
        if empty:
            raise DataError(f"{self.root / min(empty)} holds no recording; they end in {', '.join(SUFFIXES)}")
        return samples, problems

    def decode(self, data, name):
        return read_recording(data, name).events

    # -- parts

    def split(self, cfg, cache):
        names, labels = list(cache.names), cache.labels.tolist()
        excluded = [*cache.excluded]
        if not any(cache.parts):  # drawn on all there were, so that a bad recording moves no other
            labels += [self.label_names.index(n.split("/")[0]) for n in excluded]
            names += excluded
        given = list(map(str, cache.parts)) + [""] * (len(names) - len(cache.names))
        split, parts = parts_of(cfg, given, names, labels)
        return own_split(cfg, split, parts[: len(cache.names)], cache.names, cache.labels, len(excluded))
