"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32 pixels, ten classes, official split."""

from snn_repro.data.dataset import register
from snn_repro.data.images import ImageSet


@register("cifar10")
class CIFAR10(ImageSet):
    shape, num_classes = (3, 32, 32), 10
    label_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    samples = 50_000, 10_000
    statistics = [125.307, 122.961, 113.8575], [51.5865, 50.847, 51.255]
    folders = ("cifar10", "cifar-10")
    files = (("cifar-10-batches-py", "cifar-10-python.tar.gz"),)
    expected = "cifar-10-python.tar.gz, or the folder cifar-10-batches-py that it unpacks to"
    published = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def read(self, path):
        from snn_repro.data.formats import read_cifar10

        return read_cifar10(path)
