"""DVS128 Gesture (Amir et al. 2017): 1,464 trials, eleven gestures, AEDAT 3.1 with label tables.

29 people were recorded. The official lists split the trials, 1,176 / 288, with nobody in both parts; so
dataset.validation holds out whole people.
"""

import os
import re

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import Entry, Sample, register
from snn_repro.data.events import cut
from snn_repro.data.formats import read_aedat3, read_gesture_labels
from snn_repro.data.recordings import read_entry
from snn_repro.errors import DataError

LISTS = ("trials_to_train.txt", "trials_to_test.txt")


@register("dvs_gesture")
class DVSGesture(EventSet):
    """DVS128 Gesture, 128x128 pixels."""

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

    decode = staticmethod(read_aedat3)

    def recording(self, path):
        """One trial of a file: "user01_led.aedat:03" is row 3 of its label table."""
        file, _, row = path.rpartition(":") if re.search(r":\d+$", path) else (path, "", "")
        events, table = super().recording(file), file.removesuffix(".aedat") + "_labels.csv"
        if not os.path.isfile(table) and not row:
            return events
        rows = read_gesture_labels(read_entry(Entry(table), table), table)
        if not row or int(row) >= len(rows):
            raise DataError(f"{path}: {table} lists {len(rows)} trials, {file}:00 to {file}:{len(rows) - 1:02d}")
        return cut(events, *rows[int(row)][1:])

    def person(self, name):
        """The person: "user07" of "user07_led.aedat:03"."""
        return name.partition("_")[0]

    def listing(self, files):
        samples, problems, part_of = [], {}, {}
        for part, trials in zip(("train", "test"), LISTS, strict=True) if LISTS[0] in files else ():
            if trials not in files:
                raise DataError(f"{trials} is missing: it is in the DvsGesture folder or archive and holds the split")
            for file in dict.fromkeys(read_entry(files[trials], trials).decode("utf-8", "replace").split()):
                if part_of.setdefault(file, part) != part:
                    raise DataError(f"{file} is in trials_to_train.txt and in {trials}; a trial is in one of them")
                labels = file.removesuffix(".aedat") + "_labels.csv"
                try:
                    if not re.fullmatch(r"[\w.-]+", file):  # the cache's index could not hold it
                        raise DataError(f"{trials} lists {file!r}, which is not the name of a trial")
                    if absent := [name for name in (file, labels) if name not in files]:
                        raise DataError(f"{absent[0]} is missing, though {trials} lists it")
                    rows = read_gesture_labels(read_entry(files[labels], labels), labels)
                except DataError as error:
                    problems[file] = str(error)
                    continue
                samples += [
                    Sample(f"{file}:{i:02d}", file, gesture - 1, part, start, stop)
                    for i, (gesture, start, stop) in enumerate(rows)
                ]
        return samples, problems
