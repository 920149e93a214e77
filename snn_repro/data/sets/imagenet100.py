"""The 100 classes of ImageNet-1k that the paper's code names, from a tree of them or of all 1,000; 5,000 images test.

Other lists go by the name ImageNet-100 too, so the split's id holds the beginning of this list's SHA-256.
"""

import hashlib
from pathlib import Path

from snn_repro.data.dataset import register
from snn_repro.data.sets.imagenet1k import ImageNet1k


def imagenet100_wnids() -> tuple[list[str], str]:
    """The paper's 100 classes, sorted, and the SHA-256 of the list."""
    data = Path(__file__).with_name("imagenet100_wnids.txt").read_bytes()
    return data.decode().split(), hashlib.sha256(data).hexdigest()


@register("imagenet100")
class ImageNet100(ImageNet1k):
    num_classes = 100
    samples = None, 5_000  # of training images the 100 classes have no round number
    about = 128_117  # a tenth of ImageNet-1k
    folders = ("imagenet100", "imagenet-100", *ImageNet1k.folders)

    def classes(self):
        return imagenet100_wnids()[0]

    @property
    def split_id(self):
        return f"official,wnids={imagenet100_wnids()[1][:12]}"
