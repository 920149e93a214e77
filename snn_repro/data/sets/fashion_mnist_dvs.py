"""`fashion_mnist_dvs`: Fashion-MNIST as the emulated event camera of emulator.py sees it.

Events emulated from real images, on N-MNIST's geometry (34x34 pixels, three saccades); no recording of a real camera.
"""

from snn_repro.data.dataset import SETS, DataSet, register
from snn_repro.data.images import warn_if_incomplete


@register("fashion_mnist_dvs")
class FashionMNISTDVS(DataSet):
    shape, num_classes = (2, 34, 34), 10
    static, resizable = False, False
    samples = 60_000, 10_000

    @property
    def label_names(self):
        return SETS["fashion_mnist"].label_names

    def locate(self, cfg):
        return SETS["fashion_mnist"].locate(cfg)

    def fingerprint(self, cfg):
        return SETS["fashion_mnist"].fingerprint(cfg)

    def sample(self, cfg, source, say):
        """An image is recorded by the camera as its first recording, number 0."""
        from snn_repro.data import raw
        from snn_repro.data.emulator import FASHION_CAMERA

        return raw.emulated(self, cfg, source, say, SETS["fashion_mnist"], 255, FASHION_CAMERA)

    def build(self, cfg):
        """Frames of emulated events, counts; only the images that the run uses are recorded."""
        import numpy as np

        from snn_repro.data.augment import batch_transforms
        from snn_repro.data.build import Part, assemble
        from snn_repro.data.emulator import FASHION_CAMERA, emulated_frames
        from snn_repro.data.splits import split_parts

        (x_train, y_train, _), (x_test, y_test, names) = SETS["fashion_mnist"].arrays(cfg)
        warn_if_incomplete(self, len(x_train), len(x_test))
        n, x, y = len(x_train), np.concatenate([x_train, x_test])[:, 0], np.concatenate([y_train, y_test])
        train, val, split = split_parts(cfg, np.arange(n), np.arange(len(x_test)), y_train, names)
        rows = np.concatenate([np.sort(np.concatenate([train, val])), np.arange(n, len(x))])
        frames = emulated_frames(
            self.name, x[rows].astype(np.float32) / 255, cfg.timesteps, 0, cfg.dataset.integrate_by, FASHION_CAMERA,
            cfg.cache_dir, rows,
        )  # fmt: skip
        held = np.searchsorted(rows, train), np.searchsorted(rows, val), np.arange(len(rows) - len(x_test), len(rows))
        parts = [Part(frames, y[rows], at) for at in held]
        return assemble(cfg, self, parts, split, batch_transforms(cfg.augment, self))
