"""`event_folder`: recordings of an event camera of your own in class folders, prepared once by scripts/prepare_data.py.

    data_dir/<class>/*.aedat                           dataset.test_share (0.2) of each class tests, drawn with dataset.split_seed
    data_dir/train/<class>/*.aedat, test/<class>/      the folders say it; val/<class>/ is the validation part, where there is one

.aedat          AEDAT 2.0 of a DVS128, decoded as CIFAR10-DVS is, or AEDAT 3.1
.bin            40-bit ATIS events, as of N-Caltech101 and N-MNIST
.npz .h5 .hdf5  columns t (microseconds), x, y, p; see data/event_tables.py

The sensor's size is dataset.sensor=[height,width], or found when the recordings are prepared: from the files' headers where
all say it (AEDAT 2.0, AEDAT 3.1 of a known camera, height and width in .npz and HDF5), else from the largest coordinates of
all recordings. The cache's manifest keeps it, with the classes; the cache lies in cache_dir/event_folder/<name of data_dir>.
"""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

from snn_repro.data.dataset import EventSet, Sample, register
from snn_repro.data.own import SETTINGS, common_classes, folders_in, layout, one_format, own_split, parts_of
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting

FORMATS = {".aedat": "AEDAT", ".bin": "ATIS", ".npz": "npz", ".h5": "HDF5", ".hdf5": "HDF5"}
CAMERAS = {"DVS128": (128, 128), "DAVIS240": (180, 240), "DAVIS346": (260, 346), "DAVIS640": (480, 640)}
"""what the name of an AEDAT 3.1 file's source begins with -> (height, width)"""
ATIS = (240, 256)  # what the 40-bit format can say


@register("event_folder")
class EventFolder(EventSet):
    root: Path  # of those that `of` has bound to a folder, as `sources`
    sources: list[Path]  # class folders, or the folders of the parts
    given: tuple[int, ...] = (0, 0)  # dataset.sensor
    label_names = ()
    own = draws_test = True
    splits = ("official",)
    settings = SETTINGS | {
        "sensor": Setting((0, 0), "height and width of the sensor; [0,0]: found by prepare_data.py", "pixels", low=0)
    }
    expected = f"class folders with recordings ({', '.join(FORMATS)})"

    # -- what is found

    def of(self, cfg):
        given = tuple(cfg.dataset.sensor)
        if any(given) and not all(given):
            raise UserError(
                f"dataset.sensor={list(given)} must be [height,width], both above 0, or [0,0] to have it found"
            )
        kept = cfg.dataset.found
        made = kept or self._manifest(cfg)
        try:
            bound = self._bound(cfg.data_dir, given if any(given) else made.get("sensor"), given)
            if not kept or bound.found["classes"] == kept["classes"]:
                return bound
        except UserError:
            if not made or not (kept or cfg.data_dir):
                raise
        return self._bound(cfg.data_dir, given if any(given) else made["sensor"], given, made["classes"])

    def _bound(self, data_dir, sensor, given=(0, 0), classes=None):
        found = copy.copy(self)
        if classes is None:
            folders = layout(data_dir, f"recordings ({', '.join(FORMATS)})")
            present = {part: [p.name for p in folders_in(folder)] for part, folder in folders.items()}
            classes = common_classes(Path(data_dir), present)
            found.sources = [folders[""] / c for c in classes] if "" in folders else list(folders.values())
        else:
            found.sources = []
        found.root, found.given, found.num_classes = Path(os.path.abspath(data_dir or "")), given, len(classes)
        found.label_names = tuple(classes)
        found.folders = (self.name, found.root.name)
        found.arguments = f" 'dataset.sensor=[{given[0]},{given[1]}]'" if any(given) else ""
        found.found = {"classes": list(classes), "sensor": None if sensor is None else list(sensor)}
        if sensor is not None:
            found.shape = (2, *sensor)
        return found

    def _manifest(self, cfg) -> dict:
        """Classes and sensor of the cache that the configuration reads; {} without one."""
        if not cfg.cache_dir or not cfg.data_dir:
            return {}
        from snn_repro.data.cache import Settings

        try:
            named = copy.copy(self)
            named.root = Path(os.path.abspath(cfg.data_dir))
            folder = Settings(named, cfg.timesteps, cfg.dataset.integrate_by, cfg.dataset.frame_size).folder
            made = json.loads(Path(cfg.cache_dir, folder, "manifest.json").read_text())
            return {"classes": list(made["classes"]), "sensor": tuple(made["sensor"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

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
        found = self._bound(data_dir, None, self.given)
        sensor = found.given if any(found.given) else found._sensor(data_dir, say)
        return found._bound(data_dir, sensor, found.given)

    def _sensor(self, data_dir, say) -> tuple[int, int]:
        """(height, width) as the module's docstring says; recordings that cannot be read are left to the preparation."""
        from snn_repro.console import progress
        from snn_repro.data.archives import read_entry
        from snn_repro.data.recordings import find_recordings

        recordings = find_recordings(self, data_dir)
        told, tops = set(), []
        with progress("recordings were looked at for the sensor's size", len(recordings.files), say) as advance:
            for n, (name, entry) in enumerate(sorted(recordings.files.items()), 1):
                try:
                    events, size = _read(read_entry(entry, name), name)
                except DataError:
                    continue
                if size:
                    told.add(size)
                elif len(events.t):
                    tops.append((int(events.y.max()) + 1, int(events.x.max()) + 1))
                advance(n)
        if len(told) > 1:
            sizes = " and ".join(f"{h} x {w}" for h, w in sorted(told))
            raise DataError(
                f"data_dir={data_dir} mixes sensors of {sizes} pixels: give dataset.sensor=[height,width] for all"
            )
        if told and not tops:
            return told.pop()
        if not tops:
            raise DataError(
                f"not one recording in data_dir={data_dir} can be read; the first is {min(recordings.files)}"
            )
        tops += told
        height, width = max(h for h, _ in tops), max(w for _, w in tops)
        say(
            f"the sensor has {height} x {width} pixels (height x width) by the largest coordinates; where it has more, give"
            " dataset.sensor=[height,width]"
        )
        return height, width

    # -- where the files are

    depth = 9  # names are relative to data_dir, whatever folders a class has inside

    @property
    def cache_name(self):
        return f"{self.name}/{self.root.name}"

    def find(self, children):
        return self.sources

    def locate(self, cfg):
        return super(EventFolder, self.of(cfg)).locate(cfg)

    def state(self, cfg):
        try:
            return super(EventFolder, self.of(cfg)).state(cfg)
        except UserError:
            return "missing", f"the data set {self.name} in data_dir"

    def listing(self, files):
        one_format(self.root, sorted(files), FORMATS)
        label = {c: k for k, c in enumerate(self.found["classes"])}
        parts = {s.name: p for s, p in zip(self.sources, self._parts(), strict=True)}
        samples, problems, filled = [], {}, set()
        for name in files:
            first, *rest = name.split("/")
            part, c = (parts[first], rest[0]) if parts[first] else ("", first)
            if Path(name).suffix.lower() not in FORMATS or c not in label:
                continue
            filled.add((part, c))
            if re.search(r'[,":]', name) or not name.isprintable():
                problems[name] = f"{name!r} holds a comma, a quotation mark, a colon or an unprintable sign; rename it"
                continue
            samples.append(Sample(name, name, label[c], part))
        for part in dict.fromkeys(parts.values()):
            for c in label:
                if (part, c) not in filled:
                    where = "/".join(filter(None, (part, c)))
                    raise DataError(f"{self.root / where} holds no recording; they end in {', '.join(FORMATS)}")
        return samples, problems

    def _parts(self) -> list[str]:
        """The part that each of `sources` holds, "" where they are classes."""
        folders = layout(str(self.root), "recordings")
        return [""] * len(self.sources) if "" in folders else list(folders)

    def sample(self, cfg, source, say):
        return super(EventFolder, self.of(cfg)).sample(cfg, source, say)

    def decode(self, data, name):
        return _read(data, name)[0]

    # -- parts

    def split(self, cfg, cache):
        names, labels = list(cache.names), cache.labels.tolist()
        if not any(cache.parts):  # drawn on all there were, so that a bad recording moves no other
            label = {c: k for k, c in enumerate(self.found["classes"])}
            labels += [label[p["name"].split("/")[0]] for p in cache.manifest["excluded"]]
            names += [p["name"] for p in cache.manifest["excluded"]]
        given = list(map(str, cache.parts)) + [""] * (len(names) - len(cache.names))
        split, parts = parts_of(cfg, given, names, labels)
        n = len(cache.names)
        dropped = len(cache.manifest["excluded"])
        return own_split(cfg, split, parts[:n], cache.names, cache.labels, dropped)


def _read(data, name):
    """(Events, (height, width) where the file says it) of a recording. Raises DataError."""
    from snn_repro.data.event_tables import read_hdf5, read_npz
    from snn_repro.data.formats import read_aedat2, read_aedat3, read_atis_bin

    kind = FORMATS.get(Path(name).suffix.lower())
    if kind is None:
        raise DataError(f"{name} is no recording that can be read; they end in {', '.join(FORMATS)}")
    if kind == "AEDAT":
        if not data.startswith(b"#!AER-DAT3.1"):
            return read_aedat2(data, name), CAMERAS["DVS128"]
        camera = re.search(rb"^#\s*Source \d+: *(\w+)", data[:4096], re.MULTILINE)
        named = camera.group(1).decode() if camera else ""
        return read_aedat3(data, name, None), next((s for c, s in CAMERAS.items() if named.startswith(c)), None)
    if kind == "ATIS":
        return read_atis_bin(data, name, ATIS), None
    return (read_npz if kind == "npz" else read_hdf5)(data, name)
