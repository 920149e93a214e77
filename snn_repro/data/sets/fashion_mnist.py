"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28 pixels, from data_dir or from Debian's package."""

from pathlib import Path

from snn_repro.data.dataset import register
from snn_repro.data.images import ImageSet

NAMES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


@register("fashion_mnist")
class FashionMNIST(ImageSet):
    shape, num_classes = (1, 28, 28), 10
    label_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    samples = 60_000, 10_000
    statistics = [72.940], [90.021]
    folders = ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST")
    files = tuple((f"{name}.gz", name) for name in NAMES)
    installed = Path("/usr/share/datasets/fashion-mnist")
    expected = f"{NAMES[0]}.gz and its three companions"
    published = "https://github.com/zalandoresearch/fashion-mnist (Debian, Ubuntu: apt install dataset-fashion-mnist)"

    def read(self, *files):
        from snn_repro.data.formats import read_idx

        x_train, y_train, x_test, y_test = map(read_idx, files)
        return (x_train[:, None], y_train), (x_test[:, None], y_test)
