"""`fashion_mnist_dvs`: Fashion-MNIST as the emulated event camera of emulator.py sees it.

Events emulated from real images, on N-MNIST's geometry (34x34 pixels, three saccades); no recording of a real camera.
"""

import numpy as np

from snn_repro.config import Config
from snn_repro.data.augment import frame_transforms
from snn_repro.data.batches import Data, memory_data
from snn_repro.data.emulator import FASHION_CAMERA, emulated_frames
from snn_repro.data.splits import make_split
from snn_repro.data.static import read_images, warn_if_incomplete
from snn_repro.errors import UserError


def build_fashion_mnist_dvs(cfg: Config) -> Data:
    """Frames of emulated events, [T, B, 2, 34, 34] counts; only the images that the run uses are recorded."""
    data = cfg.dataset
    if cfg.augment.eventdrop:
        raise UserError("augment.eventdrop works on recordings; fashion_mnist_dvs has only frames: set it to false")
    if data.frame_size not in (None, FASHION_CAMERA.scene):
        raise UserError(f"dataset.frame_size={data.frame_size}: fashion_mnist_dvs has 34 pixels; set it to null")
    (x_train, y_train), (x_test, y_test) = ((x[:, 0], y) for x, y in read_images(cfg))
    warn_if_incomplete(data.name, len(x_train), len(x_test))
    images, labels = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])
    train, val, split = make_split(
        data.name,
        np.arange(len(x_train)),
        np.arange(len(x_test)),
        y_train,
        [f"test/{i:05d}" for i in range(len(x_test))],
        validation=data.validation,
        subset=data.train_subset,
        seed=data.split_seed,
    )
    rows = np.concatenate([np.sort(np.concatenate([train, val])), np.arange(len(x_train), len(images))])
    frames = emulated_frames(
        data.name,
        images[rows].astype(np.float32) / 255,
        cfg.timesteps,
        0,
        data.integrate_by,
        FASHION_CAMERA,
        cfg.cache_dir,
        rows,
    )
    parts = np.searchsorted(rows, train), np.searchsorted(rows, val), np.arange(len(rows) - len(x_test), len(rows))
    return memory_data(cfg, frames, labels[rows], parts, split, frame_transforms(cfg.augment, data.name, 10), 10)
