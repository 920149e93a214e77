"""`digits_dvs` and `fashion_mnist_dvs`: digits and Fashion-MNIST as the emulated event camera of emulator.py records them.

It moves images along N-MNIST's three saccades. Events emulated from real images, no recordings of a real camera, and not
N-MNIST: summing the frames over time loses little.
"""

import numpy as np

from snn_repro.data import raw
from snn_repro.data.augment import batch_transforms
from snn_repro.data.build import Part, assemble
from snn_repro.data.dataset import SETS, DataSet, register
from snn_repro.data.emulator import DIGITS_CAMERA, FASHION_CAMERA, Camera, emulate_recording, emulated_frames
from snn_repro.data.images import warn_if_incomplete
from snn_repro.data.sets import digits
from snn_repro.data.splits import split_parts


class EmulatedSet(DataSet):
    """The images of another data set, `images`, as the emulated camera records them."""

    static, resizable = False, False
    images: str
    camera: Camera
    white = 1  # the brightest value of an image
    all_recorded = False  # whether images that a run does not use are recorded too

    @property
    def label_names(self):
        return SETS[self.images].label_names

    def locate(self, cfg):
        return SETS[self.images].locate(cfg)

    def fingerprint(self, cfg):
        return SETS[self.images].fingerprint(cfg)

    def recorded(self, cfg):
        """(images, labels, training rows, test rows, names of the test); a row is the number of its recording."""
        (x, y, _), (x_test, y_test, names) = SETS[self.images].arrays(cfg)
        rows = np.arange(len(x) + len(x_test))
        return np.concatenate([x, x_test]), np.concatenate([y, y_test]), rows[: len(x)], rows[len(x) :], names

    def sample(self, cfg, source, say):
        """An image is recorded by the camera as its first recording, number 0."""
        if not isinstance(source, tuple):
            image = np.asarray(SETS[self.images].image(source, say), np.float32) / self.white
            source = emulate_recording(image, 0, self.camera)
        return raw.frames(self, cfg, source)

    def build(self, cfg):
        """Frames of emulated events, counts."""
        x, y, train, test, names = self.recorded(cfg)
        warn_if_incomplete(self, len(train), len(test))
        train, val, split = split_parts(cfg, train, test, y, names, split=SETS[self.images].split_id)
        used = np.arange(len(x)) if self.all_recorded else np.unique(np.concatenate([train, val, test]))
        frames = emulated_frames(
            self.name, x[used].astype(np.float32) / self.white, cfg.timesteps, 0, cfg.dataset.integrate_by, self.camera,
            cfg.cache_dir, used,
        )  # fmt: skip
        parts = [Part(frames, y[used], np.searchsorted(used, rows)) for rows in (train, val, test)]
        return assemble(cfg, self, parts, split, batch_transforms(cfg.augment, self))


@register("digits_dvs")
class DigitsDVS(EmulatedSet):
    shape, num_classes = (2, 24, 24), 10
    samples = 1_347, 450
    images, camera = "digits", DIGITS_CAMERA
    all_recorded = True  # so that one cache file does for every run

    def recorded(self, cfg):
        train, test = digits.train_test()
        return *digits.load_digits(), train, test, digits.sample_names(test)


@register("fashion_mnist_dvs")
class FashionMNISTDVS(EmulatedSet):
    """On N-MNIST's geometry, 34x34 pixels."""

    shape, num_classes = (2, 34, 34), 10
    samples = 60_000, 10_000
    images, camera, white = "fashion_mnist", FASHION_CAMERA, 255
