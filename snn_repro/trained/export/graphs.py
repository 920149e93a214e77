"""Export as one graph unrolled over all time steps: torch.export and ONNX."""

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

from snn_repro.errors import UserError, brief
from snn_repro.kernels import door
from snn_repro.registry import EXPORTS, SETS
from snn_repro.trained.load import TrainedRun

SAMPLES, TOLERANCE = 64, 1e-5  # random inputs on which a graph is compared with its network
ELSE = "use --to safetensors, which supports every network"


@EXPORTS.register("torch_export")
def torch_export(run: TrainedRun, folder: Path) -> str:
    """PyTorch graph unrolled over all time steps, which runs without snn_repro."""
    buffer = io.BytesIO()
    torch.export.save(unrolled(run), buffer)
    (folder / "model.pt2").write_bytes(buffer.getbuffer())  # torch hides the reason of a failed write
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # about torch's own code
        compared = comparison(run, torch.export.load(folder / "model.pt2").module())
    return f"""\
```python
import torch  # written by {torch.__version__}

network = torch.export.load("model.pt2").module()
logits = network(x)  # {signature(run)}
```

{compared}"""


@EXPORTS.register("onnx")
def onnx(run: TrainedRun, folder: Path) -> str:
    """ONNX graph unrolled over all time steps, for onnxruntime and others.

    One file. Neurons compare with the threshold as in the network, by >= or >.
    """
    import onnxruntime
    import onnxscript  # noqa: F401  torch.onnx needs it

    program: Any = unrolled(run)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tracing_errors(run, "ONNX"), contextlib.redirect_stdout(io.StringIO()):
        made: Any = torch.onnx.export(
            program, input_names=["input"], output_names=["logits"], external_data=False, verbose=False, dynamo=True
        )
    (folder / "model.onnx").write_bytes(made.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    compared = comparison(run, lambda x: torch.from_numpy(np.asarray(*session.run(["logits"], {"input": x.numpy()}))))
    return f"""\
```python
import onnxruntime  # tested with {onnxruntime.__version__}

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {{"input": x}})  # {signature(run)}
```

{compared} onnxruntime sums in another order than PyTorch: in one of some thousand samples that may change a spike,
as may another number of threads."""


@contextlib.contextmanager
def tracing_errors(run: TrainedRun, tool: str) -> Iterator[None]:
    """Turn any error of a tool that cannot trace the network into a UserError."""
    try:
        yield
    except Exception as error:
        network = f"model={run.config.model.name} with neuron={run.config.neuron.name}"
        raise UserError(f"{tool} cannot trace {network}: {brief(error, named=True)}; {ELSE}") from None


def unrolled(run: TrainedRun) -> torch.export.ExportedProgram:
    """Trace the network in evaluation mode with PyTorch's own operations only.

    The program maps (x,) to logits [T, B, K] for any B; x is static images [B, C, H, W] or frames [T, B, C, H, W] with
    the run's T. Raises UserError if torch.export cannot trace the network.
    """
    model, x = copy.deepcopy(run.model), inputs(run, 2)
    batch = {x.dim() - 4: torch.export.Dim("batch", min=1)}
    quiet = warnings.catch_warnings(action="ignore")  # about neurons that set `v`, which the graph does not need
    with tracing_errors(run, "torch.export"), quiet, torch.no_grad(), door.off(model):
        return torch.export.export(model, (x,), dynamic_shapes=(batch,), strict=False)


def inputs(run: TrainedRun, samples: int, seed: int = 0) -> torch.Tensor:
    """Draw random inputs: normalised images [B, C, H, W] or event counts [T, B, ...]."""
    generator = torch.Generator().manual_seed(seed)
    if SETS[run.config.dataset.name].static:
        return torch.randn(samples, *run.input_shape, generator=generator)
    return torch.poisson(torch.full((run.config.timesteps, samples, *run.input_shape), 0.3), generator=generator)


def comparison(run: TrainedRun, graph: Any) -> str:
    """Describe how graph(x) differs from the network on SAMPLES random inputs.

    Rounding may move a potential over the threshold, which changes a spike and what follows. Raises UserError if the
    logits [T, B, K] differ by more than that.
    """
    x = inputs(run, SAMPLES, seed=1)
    with torch.no_grad(), door.off(run.model):
        expected, actual = run.model(x), graph(x)
    difference = (actual - expected).abs()
    if not float(difference.mean()) <= 0.1 * float(expected.std()):
        raise UserError(f"the graph of model={run.config.model.name} computes other logits than the network; {ELSE}")
    changed = int((difference.amax((0, 2)) > TOLERANCE).sum())
    text = f"On {SAMPLES} random inputs its logits equal the network's within {TOLERANCE:g}"
    return text + (f", except for {changed}, where rounding changed a spike." if changed else ".")


def signature(run: TrainedRun) -> str:
    """Input and output shapes of the graph, as text."""
    shape, T = ", ".join(map(str, run.input_shape)), run.config.timesteps
    x = f"images [B, {shape}]" if SETS[run.config.dataset.name].static else f"frames [{T}, B, {shape}]"
    return f"{x} in float32 -> [{T}, B, {run.num_classes}]"
