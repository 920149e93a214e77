"""The network as one graph over all its time steps, by torch.export; and that graph as ONNX."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.registry import EXPORTS, SETS
from snn_repro.trained.load import TrainedRun

SAMPLES, TOLERANCE = 64, 1e-5  # random inputs on which a graph is compared with its network
ELSE = "--to safetensors takes every network"


@EXPORTS.register("torch_export")
def torch_export(run: TrainedRun, folder: Path) -> str:
    """the network over all its time steps as a graph that PyTorch runs without snn_repro."""
    buffer = io.BytesIO()
    torch.export.save(unrolled(run), buffer)
    (folder / "model.pt2").write_bytes(buffer.getbuffer())  # torch hides the reason of a failed write
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of itself
        compared = differences(run, torch.export.load(folder / "model.pt2").module())
    return f"""\
```python
import torch  # {torch.__version__} wrote it

network = torch.export.load("model.pt2").module()
logits = network(x)  # {takes(run)}
```

{compared}"""


@EXPORTS.register("onnx")
def onnx(run: TrainedRun, folder: Path) -> str:
    """the network over all its time steps as an ONNX graph, for onnxruntime and others.

    One file. Neurons fire by the network's own comparison, >= or >.
    """
    import onnxruntime
    import onnxscript  # noqa: F401  torch.onnx needs it

    program: Any = unrolled(run)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with followed(run, "ONNX"), contextlib.redirect_stdout(io.StringIO()):
        made: Any = torch.onnx.export(
            program, input_names=["input"], output_names=["logits"], external_data=False, verbose=False, dynamo=True
        )
    (folder / "model.onnx").write_bytes(made.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    compared = differences(run, lambda x: torch.from_numpy(np.asarray(*session.run(["logits"], {"input": x.numpy()}))))
    return f"""\
```python
import onnxruntime  # {onnxruntime.__version__} was tried

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {{"input": x}})  # {takes(run)}
```

{compared} onnxruntime adds up in another order than PyTorch: in one sample of some thousands that may move a spike, as another
number of threads may."""


@contextlib.contextmanager
def followed(run: TrainedRun, by: str) -> Iterator[None]:
    """One sentence for whatever a tool raises that cannot follow the network: errors of many classes."""
    try:
        yield
    except Exception as error:
        network = f"model={run.config.model.name} with neuron={run.config.neuron.name}"
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{by} cannot follow {network}: {why}; {ELSE}") from None


def unrolled(run: TrainedRun) -> torch.export.ExportedProgram:
    """The network in evaluation, every layer by PyTorch's own operations: (x,) -> logits [T, B, K], where x is static images
    [B, C, H, W] or frames [T, B, C, H, W] of the run's T time steps. B is free.

    Raises UserError where torch.export cannot follow the network.
    """
    model, x = copy.deepcopy(run.model), inputs(run, 2)
    batch = {x.dim() - 4: torch.export.Dim("batch", min=1)}
    with followed(run, "torch.export"), warnings.catch_warnings(), torch.no_grad(), door.off(model):
        warnings.simplefilter("ignore")  # that neurons show their last potential in `v`: the graph need not
        return torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=False)


def inputs(run: TrainedRun, samples: int, seed: int = 0) -> Tensor:
    """Random inputs like those of the run's data: normalised images [B, C, H, W], or counts of events [T, B, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    if SETS[run.config.dataset.name].static:
        return torch.randn(samples, *run.input_shape, generator=generator)
    rate = torch.full((run.config.timesteps, samples, *run.input_shape), 0.3)
    return torch.poisson(rate, generator=generator)


def differences(run: TrainedRun, graph: Any) -> str:
    """In words, how graph(x) -> logits [T, B, K] differs from the network on SAMPLES random inputs: by rounding, and where that moves
    a potential over a threshold, by a spike and all that follows from it.

    Raises UserError where it differs by more than that.
    """
    x = inputs(run, SAMPLES, seed=1)
    with torch.no_grad(), door.off(run.model):
        expected, found = run.model(x), graph(x)
    apart = (found - expected).abs().amax((0, 2))
    if not float((found - expected).abs().mean()) <= 0.1 * float(expected.std()):
        raise UserError(
            f"the graph of model={run.config.model.name} gives other logits than the network, by up to {float(apart.max()):.2g}; {ELSE}"
        )
    near = apart[apart <= TOLERANCE]
    said = f"On {SAMPLES} random inputs its logits are those of the network"
    said += f" within {float(near.max()):.1e}" if len(near) else ""
    if len(near) == SAMPLES:
        return f"{said}."
    return f"{said} but for {1 - len(near) / SAMPLES:.1%} of them, where rounding moved a potential over a threshold and so a spike."


def takes(run: TrainedRun) -> str:
    """What the graph takes and gives, in a few words."""
    shape, T = ", ".join(map(str, run.input_shape)), run.config.timesteps
    x = f"images [B, {shape}]" if SETS[run.config.dataset.name].static else f"frames [{T}, B, {shape}]"
    return f"{x} in float32 -> [{T}, B, {run.num_classes}]"
