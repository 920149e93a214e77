from collections.abc import Callable
from functools import partial
from typing import Any

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import PilAugmentation, register_augmentation
from snn_repro.settings import Setting


@register_augmentation("rrc_min_area")
class RandomResizedCrop(PilAugmentation):
    """Cut a part of random area (1 at most) and aspect (3/4 to 4/3) and resize it (Szegedy et al., CVPR 2015).

    `interpolation` and `test_resize` are about the test of image files too: see `eval_steps`.
    """

    settings = {
        "rrc_min_area": Setting(0.0, "RandomResizedCrop: smallest area; 0 is off", low=0, high=1),
        "interpolation": Setting("bicubic", "RandomResizedCrop and test resize", choices=("bicubic", "bilinear")),
        "test_resize": Setting(
            0,
            "test of image files: short side before the centre crop; 0 is 256 (ImageNet), or the crop's size",
            "pixels",
            low=0,
        ),
    }
    order = 10
    resizes = on_tensors = True

    def __init__(self, rrc_min_area: float, interpolation: str = "bicubic", test_resize: int = 0):
        self.area, self.interpolation = rrc_min_area, interpolation

    def pil_step(self, size, fill):
        return partial(_cut, area=self.area, size=size, mode=vision.functional.InterpolationMode(self.interpolation))


def _cut(image: Any, area: float, size: int, mode: Any) -> Any:
    """torchvision's RandomResizedCrop of a PIL image or a tensor, whose bytes stay bytes."""
    box = vision.transforms.RandomResizedCrop.get_params(image, (area, 1.0), (3 / 4, 4 / 3))
    return vision.v2.functional.resized_crop(image, *box, [size, size], mode, antialias=True)


def eval_steps(augment: Any, size: int, margin: float = 256 / 224) -> list[Callable]:
    """Resize and centre crop of a test image: to `margin` times the size, as for ImageNet, unless test_resize is set."""
    short = augment.test_resize or round(size * margin)
    mode = vision.functional.InterpolationMode(augment.interpolation)
    return [vision.v2.Resize(short, mode), vision.v2.CenterCrop(size)]
