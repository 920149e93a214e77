"""How batches reach the device that trains: from a copy of the data set in its memory, or sent there as they are stored.

Where they are made changes no bit of them: all that is random is drawn on the CPU, and what is done to values is rounded alike.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_repro.data.augment import Augmentation, GuidedAugmentation
from snn_repro.data.batches import AS_STORED, Batches, LoaderBatches, MemoryBatches, portable
from snn_repro.data.events import ByteFrames
from snn_repro.errors import UserError

log = logging.getLogger("snn_repro")

SHARE = (
    0.25  # of the device's free memory that a data set may take with dataset.on_device=auto; the rest is the network's
)


def feed(parts: Sequence[Any], device: torch.device, on_device: Any = "auto", ahead: Any = "auto") -> list[Any]:
    """The parts of a data set (Batches or None) with the same batches, on their way to `device`; the first is that of training.

    on_device, ahead: "auto", True or False, see the keys of `dataset`. Raises UserError where on_device=True does not fit.
    """
    gpu = device.type == "cuda"
    wanted = gpu if on_device == "auto" else on_device
    reasons = [_why_not(part) for part in parts]
    if wanted and reasons[0]:
        log.info(f"dataset.on_device={str(on_device).lower()}: training batches are made on the host, as {reasons[0]}")
    stay = [part for part, reason in zip(parts, reasons, strict=True) if wanted and not reason]
    copies = _copies(stay, device, on_device) if stay else {}
    fed = []
    for part in parts:
        if isinstance(part, MemoryBatches) and _place(part) in copies and part in stay:
            part = part.on_device(device, *copies[_place(part)])
        elif isinstance(part, MemoryBatches | LoaderBatches):
            part = copy.copy(part)
            part.device = device if all(map(portable, part.transforms)) else part.device
            guided = any(isinstance(t, GuidedAugmentation) for t in part.transforms)
            part.ahead = (
                gpu if ahead == "auto" else ahead
            ) and not guided  # a loader's processes are ahead by themselves
        fed.append(part)
    return fed


def _why_not(part: Batches | None) -> str | None:
    """Why the batches of a part cannot be made on a device."""
    if not isinstance(part, MemoryBatches):
        return "samples are read one by one"
    for transform in part.transforms:
        if not portable(transform):
            name = f"augment.{transform.name}" if isinstance(transform, Augmentation) else type(transform).__name__
            return f"{name} has no form for a device"
    return None


def _place(part: MemoryBatches) -> int:
    """What is the same for parts of one array."""
    inputs = part.inputs.stored if isinstance(part.inputs, ByteFrames) else part.inputs
    return inputs.data_ptr() if isinstance(inputs, Tensor) else inputs.__array_interface__["data"][0]


def _kind(inputs: Any) -> torch.dtype:
    return inputs.dtype if isinstance(inputs, Tensor) else AS_STORED.get(inputs.dtype, torch.float32)


def _copies(parts: Sequence[MemoryBatches], device: torch.device, on_device: Any) -> dict[int, tuple[Tensor, dict]]:
    """The arrays of the parts on the device, with their tables; none where they do not fit and need not."""
    arrays: dict[int, list[MemoryBatches]] = {}
    for part in parts:
        arrays.setdefault(_place(part), []).append(part)
    size = sum(math.prod(p.inputs.shape) * _kind(p.inputs).itemsize for p, *_ in arrays.values())
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if size > free * (SHARE if on_device == "auto" else 1):
            sizes = f"the data set takes {size / 1e9:.1f} GB and {device} has {free / 1e9:.1f} GB free"
            if on_device != "auto":
                raise UserError(f"dataset.on_device=true: {sizes}; use auto or false")
            log.info(f"dataset.on_device=auto: {sizes}, so batches are made on the host")
            return {}
    return {place: _copy(those, device) for place, those in arrays.items()}


def _copy(parts: Sequence[MemoryBatches], device: torch.device) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """The rows of an array that its parts use, read and checked once, and their part of the table of a ByteFrames."""
    inputs = parts[0].inputs
    if isinstance(inputs, Tensor):
        return inputs.to(device), {}
    kind, over = _kind(inputs), inputs.over if isinstance(inputs, ByteFrames) else {}
    copied = torch.empty(tuple(inputs.shape), dtype=kind, device=device)
    row_of = torch.empty(tuple(inputs.shape[1:]), dtype=kind)
    for row in torch.cat([p.rows for p in parts]).unique().tolist():
        parts[0].checked(row)
        row_of.numpy()[...] = inputs.stored[row] if row in over else inputs[row]
        copied[row] = row_of
    return copied, {
        row: (torch.from_numpy(places).to(device), torch.from_numpy(counts.astype(np.float32)).to(device))
        for row, (places, counts) in over.items()
    }
