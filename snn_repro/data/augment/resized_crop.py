"""RandomResizedCrop (Szegedy et al., CVPR 2015), and the resize of test images."""

from collections.abc import Callable
from functools import partial
from typing import Any

from snn_repro.data import vision
from snn_repro.data.augment.augmentation import PilAugmentation, register_augmentation
from snn_repro.settings import Setting


@register_augmentation("rrc_min_area")
class RandomResizedCrop(PilAugmentation):
    """Crop a random area (at most 1) and aspect ratio (3/4 to 4/3), then resize.

    `interpolation` and `test_resize` also apply to the test of image files: see `eval_steps`.
    """

    settings = {
        "rrc_min_area": Setting(0.0, "RandomResizedCrop: smallest area fraction; 0 is off", low=0, high=1),
        "interpolation": Setting("bicubic", "of RandomResizedCrop and test resize", choices=("bicubic", "bilinear")),
        "test_resize": Setting(
            0, "test of image files: short side before the centre crop; 0 is 256 (ImageNet), or the crop size", "pixels",
            low=0,
        ),
    }  # fmt: skip
    order = 10
    resizes = on_tensors = True

    def __init__(self, rrc_min_area: float, interpolation: str = "bicubic", test_resize: int = 0):
        self.area, self.interpolation = rrc_min_area, interpolation

    def pil_step(self, size, fill):
        return partial(_cut, area=self.area, size=size, mode=vision.functional.InterpolationMode(self.interpolation))


def _cut(image: Any, area: float, size: int, mode: Any) -> Any:
    """torchvision's RandomResizedCrop of a PIL image or tensor; uint8 stays uint8."""
    box = vision.transforms.RandomResizedCrop.get_params(image, (area, 1.0), (3 / 4, 4 / 3))
    return vision.v2.functional.resized_crop(image, *box, [size, size], mode, antialias=True)


def eval_steps(augment: Any, size: int, margin: float = 256 / 224) -> list[Callable]:
    """Test transform: resize the short side to test_resize, else size * margin, then centre-crop."""
    short = augment.test_resize or round(size * margin)
    mode = vision.functional.InterpolationMode(augment.interpolation)
    return [vision.v2.Resize(short, mode), vision.v2.CenterCrop(size)]
