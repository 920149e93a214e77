"""`event_folder`: recordings of an event camera of your own in class folders, prepared once by scripts/prepare_data.py.

    data_dir/<class>/*.npz                           dataset.test_share (0.2) of each class tests, drawn with dataset.split_seed
    data_dir/train/<class>/*.npz, test/<class>/      the folders say it; val/<class>/ is the validation part, where there is one

Files and their columns: see data/event_tables.py. The sensor's size is dataset.sensor=[height,width], or found when the
recordings are prepared: what the files say where all say it, else from the largest coordinates.
"""

from __future__ import annotations

import copy
import json
import os
import re
import zlib
from functools import lru_cache
from pathlib import Path

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import Sample, register
from snn_repro.data.own import SETTINGS, common_classes, folders_in, layout, own_split, parts_of
from snn_repro.errors import DataError, UserError
from snn_repro.settings import Setting

WHOLE, FEW = 2**30, 64  # bytes of recordings up to which all are compared with a cache; how many of more
STRAY = 4  # times the side that half of the recordings stay below


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
    expected = "class folders with recordings"
    depth = 9  # names are relative to data_dir, whatever folders a class has inside

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
            folders = layout(data_dir, "recordings")
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
        from snn_repro.data.cache import Settings

        try:
            named = copy.copy(self)
            named.root = Path(os.path.abspath(cfg.data_dir))
            folder = Settings(named, cfg.timesteps, cfg.dataset.integrate_by, cfg.dataset.frame_size).folder
            made = json.loads(Path(cfg.cache_dir, folder, "manifest.json").read_text())
            return {"classes": list(made["classes"]), "sensor": tuple(made["sensor"])}
        except (OSError, ValueError, KeyError, TypeError):  # cache_dir or data_dir may be None too
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
        from snn_repro.data.event_tables import read_recording
        from snn_repro.data.recordings import find_recordings, read_entry

        files = find_recordings(self, data_dir).files
        told, tops, problems = {}, {}, []  # name -> (height, width), twice
        with progress("recordings were looked at for the sensor's size", len(files), say) as advance:
            for n, (name, entry) in enumerate(sorted(files.items()), 1):
                try:
                    events, size = read_recording(read_entry(entry, name), name)
                    if size:
                        told[name] = size
                    elif len(events.t):
                        tops[name] = int(events.y.max()) + 1, int(events.x.max()) + 1
                except DataError as error:
                    problems.append(error)
                advance(n)
        if not told and not tops:
            why = problems[0] if problems else "they hold no events"
            raise DataError(f"not one recording in data_dir={data_dir} can be read: {why}")
        if len(sizes := sorted(set(told.values()))) > 1:
            mixed = " and ".join(f"{h} x {w}" for h, w in sizes)
            raise DataError(
                f"data_dir={data_dir} mixes sensors of {mixed} pixels: give dataset.sensor=[height,width] for all"
            )
        return _largest(tops, sizes, say) if tops else sizes[0]

    # -- where the files are

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
        """Samples and problems; gives `files` checksums, so that a cache of other data with these names is noticed."""
        from snn_repro.data.event_tables import SUFFIXES

        label = {c: k for k, c in enumerate(self.found["classes"])}
        folders = layout(str(self.root), "recordings")
        parts = dict.fromkeys(label, "") if "" in folders else {path.name: part for part, path in folders.items()}
        samples, problems, filled = [], {}, set()
        for name in files:
            first, *rest = name.split("/")
            part, c = (parts[first], rest[0]) if parts[first] else ("", first)
            if Path(name).suffix.lower() not in SUFFIXES or c not in label:
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
                    raise DataError(f"{self.root / where} holds no recording; they end in {', '.join(SUFFIXES)}")
        compared = sorted({s.file for s in samples})
        if sum(files[n].size for n in compared) > WHOLE:
            compared = compared[:: -(-len(compared) // FEW)]
        for n in (n for n in compared if os.path.isfile(files[n].path)):
            files[n] = files[n]._replace(crc32=_crc32(files[n].path, os.stat(files[n].path).st_mtime_ns, files[n].size))
        return samples, problems

    def sample(self, cfg, source, say):
        return super(EventFolder, self.of(cfg)).sample(cfg, source, say)

    def decode(self, data, name):
        from snn_repro.data.event_tables import read_recording

        return read_recording(data, name).events

    # -- parts

    def split(self, cfg, cache):
        names, labels = list(cache.names), cache.labels.tolist()
        excluded = [p["name"] for p in cache.manifest["excluded"]]
        if not any(cache.parts):  # drawn on all there were, so that a bad recording moves no other
            label = {c: k for k, c in enumerate(self.found["classes"])}
            labels += [label[n.split("/")[0]] for n in excluded]
            names += excluded
        given = list(map(str, cache.parts)) + [""] * (len(names) - len(cache.names))
        split, parts = parts_of(cfg, given, names, labels)
        return own_split(cfg, split, parts[: len(cache.names)], cache.names, cache.labels, len(excluded))


def _largest(tops: dict[str, tuple[int, int]], told: list[tuple[int, int]], say) -> tuple[int, int]:
    """The sensor by the largest coordinates of recordings. Raises DataError where those of one are far from the others'."""
    sides = []
    for axis, column in enumerate("yx"):
        side, file = max((top[axis], name) for name, top in tops.items())
        usual = sorted(top[axis] for top in tops.values())[(len(tops) - 1) // 2]
        if side > STRAY * usual:
            raise DataError(
                f"{file}: {column} reaches {side - 1} and half of the recordings stay below {usual}; remove such events,"
                " or give dataset.sensor=[height,width]"
            )
        sides.append(max(side, *(size[axis] for size in told), 0))
    say(
        f"the sensor has {sides[0]} x {sides[1]} pixels (height x width) by the largest coordinates; where it has more, give"
        " dataset.sensor=[height,width]"
    )
    return sides[0], sides[1]


@lru_cache(maxsize=100_000)
def _crc32(path: str, changed: int, size: int) -> str:
    """Eight hexadecimal digits, as in zip archives; "" for a file that cannot be read, which is left to its reader."""
    try:
        return f"{zlib.crc32(Path(path).read_bytes()):08x}"
    except OSError:
        return ""
