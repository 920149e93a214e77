"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32 pixels, the 100 fine labels, official split."""

from snn_repro.data.dataset import register
from snn_repro.data.images import ImageSet


@register("cifar100")
class CIFAR100(ImageSet):
    shape, num_classes = (3, 32, 32), 100
    samples = 50_000, 10_000
    statistics = [129.304, 124.070, 112.434], [68.170, 65.392, 70.418]
    folders = ("cifar100", "cifar-100")
    files = (("cifar-100-python", "cifar-100-python.tar.gz"),)
    expected = "cifar-100-python.tar.gz, or the folder cifar-100-python that it unpacks to"
    published = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def read(self, path):
        from snn_repro.data.formats import read_cifar100

        return read_cifar100(path)
