"""A raw sample from outside a data set: an image or a recording.

image      a path, a PIL image, or pixels: uint8 [H, W], [H, W, 3] or [C, H, W]
recording  a path (of the set's own format), or `Events` (t, x, y, p), four arrays of N
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from snn_repro.config.schema import Config
from snn_repro.data import vision
from snn_repro.data.dataset import DataSet
from snn_repro.data.events import Events, to_frames
from snn_repro.data.image_files import as_shown, decode, decode_tensor
from snn_repro.errors import DataError, UserError

MODES = {1: "L", 3: "RGB"}


def is_path(source: Any) -> bool:
    """Whether `source` is the path of a file."""
    return isinstance(source, str | os.PathLike)


# ------------------------------------------------------------------ images


def picture(source: Any, channels: int, say: Callable[[str], None], shown: bool = True):
    """An 8-bit PIL image with 1 (grey) or 3 channels; shown: apply `as_shown`. Raises UserError."""
    name = str(source) if is_path(source) else "the image"
    if is_path(source):
        if not Path(source).is_file():
            raise DataError(f"{source} {'is a folder' if Path(source).is_dir() else 'does not exist'}: give an image")
        image = decode(os.fspath(source), None, shown)
    elif isinstance(source, Image.Image):
        image = as_shown(source) if shown else source
    else:
        values = np.asarray(source)
        if values.ndim == 3 and values.shape[0] in MODES and values.shape[2] not in MODES:
            values = values.transpose(1, 2, 0)
        values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
        if values.dtype != np.uint8 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3)):
            raise UserError(
                f"an array {values.dtype} {list(np.shape(source))} is no image: use uint8 [H, W], [H, W, 3], [C, H, W]"
            )
        image = Image.fromarray(np.ascontiguousarray(values))
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name} has pixels of more than 8 bits (mode {image.mode}); save it with 8 bits per channel")
    if image.mode != MODES[channels]:
        say(f"{name}: its colours ({image.mode}) are converted to {'grey' if channels == 1 else 'RGB'}")
        image = image.convert(MODES[channels])
    return image


def picture_tensor(source: Any, channels: int, say: Callable[[str], None], shown: bool) -> torch.Tensor:
    """`picture` as uint8 [C, H, W]; files are opened by `decode_tensor`."""
    checked = picture(source, channels, say, shown)
    if is_path(source):
        return decode_tensor(os.fspath(source), MODES[channels], shown)
    return vision.functional.pil_to_tensor(checked)


def pixels(source: Any, shape: tuple[int, int, int], say: Callable[[str], None]) -> np.ndarray:
    """uint8 image of `shape` [C, H, W], resized if necessary (bilinear, antialiased, aspect not kept)."""
    channels, *size = shape
    found = vision.functional.pil_to_tensor(picture(source, channels, say))
    if list(found.shape[1:]) != size:
        name = str(source) if is_path(source) else "the image"
        say(f"{name}: its {found.shape[1]}x{found.shape[2]} pixels (height x width) are resized to {size[0]}x{size[1]}")
        found = vision.functional.resize(found, size, antialias=True)
    return found.numpy()


# ------------------------------------------------------------------ recordings


def frames(dataset: DataSet, cfg: Config, events: Any) -> torch.Tensor:
    """Frames float32 [T, 1, 2, H, W] of `Events`, integrated like the data set's."""
    try:
        events = Events(*events)
    except TypeError:
        raise UserError(f"{dataset.name} is made of recordings: give a file, or events (t, x, y, p)") from None
    if not len(events.t):
        raise DataError("the recording holds no events")
    counts = to_frames(events, dataset.shape[1:], cfg.timesteps, cfg.dataset.integrate_by, cfg.dataset.frame_size)
    return torch.from_numpy(counts.astype(np.float32))[:, None]
