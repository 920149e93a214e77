"""CIFAR10-DVS (Li et al. 2017): 10,000 DVS128 recordings of CIFAR-10 images, ten classes, AEDAT 2.0.

It has no official split. Four are in use, and accuracies on different ones do not compare:
    tebn     files number 0..99 of each class test (TEBN, PSN; the paper's 48-pixel rows); accuracies are usually higher
             than on random splits
    tail     files number 900..999 of each class test (TET)
    front90  the first 90 % of each class train, files ordered as strings, not numbers (SEW-ResNet, Spikformer, GLIF)
    random   per class, seeded shuffle of the string order, first 90 % train (the paper's 128-pixel rows)
"""

from snn_repro.data.build import EventSet
from snn_repro.data.dataset import register
from snn_repro.data.formats import read_aedat2


@register("cifar10_dvs")
class CIFAR10DVS(EventSet):
    """CIFAR10-DVS, 128x128 pixels."""

    shape, num_classes = (2, 128, 128), 10
    samples = 9_000, 1_000
    splits = ("tebn", "tail", "front90", "random")
    folders = ("cifar10_dvs", "CIFAR10-DVS", "4724671")
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    pattern = r"cifar10_{c}_\d+\.aedat"
    expected = "airplane.zip ... truck.zip, or the ten folders that they unpack to"
    published = "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671"
    decode = staticmethod(read_aedat2)

    def published_names(self):
        return {f"{c}/cifar10_{c}_{i}.aedat": k for k, c in enumerate(self.class_names) for i in range(1000)}
