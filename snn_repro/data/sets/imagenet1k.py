"""ImageNet-1k (ILSVRC 2012): 1,281,167 training images; its 50,000 validation images test.

As a tree of class folders, Kaggle's, or the archives (image_files.py).
"""

from snn_repro.data.dataset import register
from snn_repro.data.images import ImageFolders


@register("imagenet1k")
class ImageNet1k(ImageFolders):
    shape, num_classes = (3, 224, 224), 1000
    samples: tuple[int | None, int | None] = (1_281_167, 50_000)
    statistics = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    folders: tuple[str, ...] = ("imagenet1k", "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
    published = "https://www.image-net.org/download.php"

    @property
    def expected(self):
        return (
            "train/<class>/*.JPEG and val/<class>/*.JPEG, or ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, there"
            f" or in one of: {', '.join(self.folders)}"
        )
