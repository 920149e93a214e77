"""N-Caltech101 (Orchard et al. 2015): 8,709 ATIS recordings, 101 classes, 40-bit events.

One class is backgrounds. There is no official split, and accuracies on different ones do not compare:
    seeded           per class, sorted names shuffled with the class number as seed, first int(0.9 n) train: 7,795 / 914
                     (the paper's code shuffled an unsorted listing, so its test list depends on the file system)
    front90          the first ceil(0.9 n) of each class train: 7,886 / 823 (TCJA)
    front90_rounded  the first round(0.9 n) of each class train: 7,839 / 870 (TKS, of an unsorted directory listing)
"""

from pathlib import Path

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import register
from snn_repro.data.formats import read_atis_bin

LINES = Path(__file__).with_name("ncaltech101_counts.txt").read_text().splitlines()
# {class: recordings} of the 101 folders, sorted as strings (capitals first): BACKGROUND_Google, ..., yin_yang
COUNTS = {name: int(count) for name, count in map(str.split, LINES)}


@register("ncaltech101")
class NCaltech101(EventSet):
    """N-Caltech101, 180x240 pixels."""

    shape, num_classes = (2, 180, 240), 101
    samples = 7_795, 914
    splits = ("seeded", "front90", "front90_rounded")
    nda = (3, 15.0)
    folders = ("ncaltech101", "N-Caltech101", "N-Caltech101-archive")
    class_names = tuple(COUNTS)
    inside = ("Caltech101",)
    pattern = r"image_\d+\.bin"
    expected = "Caltech101.zip, or the folder Caltech101 that it unpacks to"
    published = "https://www.garrickorchard.com/datasets/n-caltech101"
    decode = staticmethod(read_atis_bin)

    def published_names(self):
        return {f"{c}/image_{i:04d}.bin": k for k, (c, n) in enumerate(COUNTS.items()) for i in range(1, n + 1)}
