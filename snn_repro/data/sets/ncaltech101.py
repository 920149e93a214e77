"""N-Caltech101 (Orchard et al. 2015): 8,709 recordings of an ATIS, 101 classes with that of backgrounds, 40-bit events.

It has no official split; accuracies on different ones do not compare:
    seeded           per class, names sorted, shuffled with the class number as seed, first int(0.9 n) train: 7,795 /
                     914. The paper's code shuffled an unsorted directory listing, so its own test list differs from
                     one file system to another.
    front90          the first ceil(0.9 n) of each class train: 7,886 / 823 (TCJA)
    front90_rounded  the first round(0.9 n) of each class train: 7,839 / 870 (TKS, of an unsorted directory listing)
"""

from functools import cache
from pathlib import Path

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import register
from snn_repro.data.formats import read_atis_bin


@cache
def counts() -> dict[str, int]:
    """{class: recordings} of the 101 folders, sorted as strings (capitals first): BACKGROUND_Google, ..., yin_yang."""
    lines = Path(__file__).with_name("ncaltech101_counts.txt").read_text().splitlines()
    return {name: int(count) for name, count in map(str.split, lines)}


@register("ncaltech101")
class NCaltech101(EventSet):
    shape, num_classes = (2, 180, 240), 101
    samples = 7_795, 914
    splits = ("seeded", "front90", "front90_rounded")
    nda = (3, 15.0)
    folders = ("ncaltech101", "N-Caltech101", "N-Caltech101-archive")
    inside = ("Caltech101",)
    pattern = r"image_\d+\.bin"
    expected = "Caltech101.zip, or the folder Caltech101 that it unpacks to"
    published = "https://www.garrickorchard.com/datasets/n-caltech101"
    decode = staticmethod(read_atis_bin)

    @property
    def class_names(self):
        return list(counts())

    def published_names(self):
        return {f"{c}/image_{i:04d}.bin": k for k, (c, n) in enumerate(counts().items()) for i in range(1, n + 1)}
