"""DVS128 Gesture (Amir et al. 2017): 1,464 trials of 29 people, eleven gestures, AEDAT 3.1 with tables of labels.

The official lists of trials split it, 1,176 / 288, with nobody on both sides; so dataset.validation holds out whole people.
"""

import re
from pathlib import Path

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import Sample, register
from snn_repro.errors import DataError

LISTS = ("trials_to_train.txt", "trials_to_test.txt")


@register("dvs_gesture")
class DVSGesture(EventSet):
    shape, num_classes = (2, 128, 128), 11
    label_names = (
        "hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise", "right_arm_counter_clockwise",
        "left_arm_clockwise", "left_arm_counter_clockwise", "arm_roll", "air_drums", "air_guitar", "other_gestures",
    )  # fmt: skip
    samples = 1_176, 288
    splits = ("official",)
    folders = ("dvs_gesture", "DVS128Gesture")
    inside = ("DvsGesture",)
    depth = 1
    expected = "DvsGesture.tar.gz, or the folder DvsGesture that it unpacks to"
    published = "https://research.ibm.com/interactive/dvsgesture"

    def decode(self, data, name):
        from snn_repro.data.formats import read_aedat3

        return read_aedat3(data, name)

    def recording(self, path):
        """A file holds many trials: "user01_led.aedat:03" is row 3 of the table of labels beside it."""
        from snn_repro.data.formats import read_gesture_labels
        from snn_repro.data.raw import file_bytes
        from snn_repro.data.recordings import cut

        file, _, row = path.rpartition(":") if re.search(r":\d+$", path) else (path, "", "")
        events, table = self.decode(file_bytes(file), file), Path(file.removesuffix(".aedat") + "_labels.csv")
        if not table.is_file() and not row:
            return events
        rows = read_gesture_labels(table)
        if not row or int(row) >= len(rows):
            raise DataError(
                f"{path}: {table} lists {len(rows)} trials in it; name one of {file}:00 to {file}:{len(rows) - 1:02d}"
            )
        gesture, start, stop = rows[int(row)]
        return cut(events, Sample(path, file, gesture - 1, "", start, stop))

    def person(self, name):
        """ "user07" of "user07_led.aedat:03"."""
        return name.partition("_")[0]

    def find(self, children):
        from snn_repro.data.archives import either

        if LISTS[0] in children:
            return [children[LISTS[0]].parent]
        path = either(children, "DvsGesture")
        if path is not None and path.is_dir():
            return [path] if (path / LISTS[0]).is_file() else []
        return [path] if path else []

    def listing(self, files):
        from snn_repro.data.formats import read_gesture_labels
        from snn_repro.data.recordings import read_or_error

        tables = {n: read_or_error(e, n) for n, e in files.items() if n.endswith(("_labels.csv", *LISTS))}
        samples, problems, part_of = [], {}, {}
        for part, trials in zip(("train", "test"), LISTS, strict=True):
            if trials not in tables:
                raise DataError(
                    f"{trials} is missing: it belongs to the DvsGesture folder or archive and holds the split"
                )
            if isinstance(tables[trials], DataError):
                raise tables[trials]
            for file in dict.fromkeys(tables[trials].decode("utf-8", "replace").split()):
                if part_of.setdefault(file, part) != part:
                    raise DataError(f"{file} stands in trials_to_train.txt and in {trials}; a trial is in one of them")
                labels = file.removesuffix(".aedat") + "_labels.csv"
                if not re.fullmatch(r"[\w.-]+", file):  # the index of the cache could not hold it
                    problems[repr(file)] = f"{trials} lists {file!r}, which is no name of a trial"
                    continue
                if file not in files or labels not in tables:
                    absent = file if file not in files else labels
                    problems[file] = f"{absent} is missing, though {trials} lists it"
                    continue
                try:
                    if isinstance(tables[labels], DataError):
                        raise tables[labels]
                    rows = read_gesture_labels(tables[labels], labels)
                except DataError as error:
                    problems[file] = str(error)
                    continue
                samples += [
                    Sample(f"{file}:{i:02d}", file, gesture - 1, part, start, stop)
                    for i, (gesture, start, stop) in enumerate(rows)
                ]
        return samples, problems
