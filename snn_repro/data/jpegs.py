"""dataset.decoder=nvjpeg: JPEGs that loader processes read as bytes and the training process decodes and cuts on its GPU.

torchvision (or torchcodec) hands a batch of files to nvJPEG, which uses the GPU's own decoder where it has one. What is drawn
for an image is what is drawn with any other decoder, on the CPU, so crops and flips are the same; pixels differ by rounding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snn_repro.data.augment.augmentation import sent
from snn_repro.data.batches import PilImages, borrowed_generators, seed_sample
from snn_repro.data.image_files import as_stored, decode_jpegs, named
from snn_repro.errors import UserError

if TYPE_CHECKING:
    from snn_repro.config import Config


class Jpegs(PilImages):
    """Image files as they are stored, and what makes a batch of them: `finished`."""

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        """The bytes of a JPEG, uint8 [n]; of another image, which the reading process decodes, its pixels, uint8 [C, H, W]."""
        return as_stored(self.images[i], self.mode), int(self.labels[i])

    def finished(self, rows: Sequence[int], stored: list[Tensor], seeds: Sequence[int], device: torch.device) -> Tensor:
        """The images of these rows from what was read, decoded on `device` and transformed there: uint8 [B, C, H, W].

        seeds: of the global generators while an image is transformed. Raises DataError with the name of a damaged file, and
        what the device raises where all files are good.
        """
        files = [i for i, x in enumerate(stored) if x.ndim == 1]
        pixels = list(stored)
        try:
            decoded = decode_jpegs([stored[i] for i in files], self.mode, device)
        except RuntimeError:  # of a file, which a CPU finds too, or of the device, such as its memory
            for i in files:
                with named(self.images[rows[i]]):
                    decode_jpegs([stored[i]], self.mode, torch.device("cpu"))
            raise
        for i, x in zip(files, decoded, strict=True):
            pixels[i] = x
        made = []
        with borrowed_generators():
            for x, seed in zip(pixels, seeds, strict=True):
                seed_sample(seed)
                made.append(self.transform(sent(x, device)))
        return torch.stack(made)


def check(cfg: Config, in_pil: Sequence[str]) -> None:
    """Raise UserError where dataset.decoder=nvjpeg cannot work; in_pil: the keys of steps that need PIL images."""
    from PIL import Image

    said, instead = "dataset.decoder=nvjpeg decodes on the GPU", "use dataset.decoder=torchvision"
    if in_pil:
        raise UserError(f"{said} and augment.{in_pil[0]} needs images of PIL; set it to 0 or {instead}")
    if cfg.device == "cpu" or not torch.cuda.is_available():
        why = "device=cpu" if cfg.device == "cpu" else "torch sees none"
        raise UserError(f"{said} and {why}; {instead}")
    trial = io.BytesIO()
    Image.new("L", (16, 16)).save(trial, "JPEG")
    try:
        decode_jpegs(
            [torch.frombuffer(trial.getbuffer(), dtype=torch.uint8)],
            "L",
            torch.device(cfg.device if cfg.device.startswith("cuda") else "cuda"),
        )
    except RuntimeError as error:
        raise UserError(
            f"{said}, which torchvision cannot here ({' '.join(str(error).split())[:200]}); {instead}"
        ) from None
