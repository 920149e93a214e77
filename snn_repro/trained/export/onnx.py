"""the network over all its time steps as an ONNX graph, for onnxruntime and others."""

import contextlib
import io
import logging
from pathlib import Path

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401  torch.onnx needs it
import torch
from torch import Tensor

from snn_repro.errors import UserError
from snn_repro.registry import EXPORTS
from snn_repro.trained.export._unrolled import differences, takes, unrolled
from snn_repro.trained.load import TrainedRun

FILE, INPUT, OUTPUT = "model.onnx", "input", "logits"


@EXPORTS.register("onnx")
def write(run: TrainedRun, folder: Path) -> str:
    """model.onnx, made of the graph of torch.export, in one file. Neurons fire by the network's own comparison, >= or >."""
    program = unrolled(run)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = torch.onnx.export(
                program, input_names=[INPUT], output_names=[OUTPUT], external_data=False, verbose=False, dynamo=True
            )  # fmt: skip
    except Exception as error:  # of many classes, for operators that it does not have
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"ONNX cannot say what model={run.config.model.name} with neuron={run.config.neuron.name} does: "
            f"{type(error).__name__}: {why}; --to safetensors takes every network"
        ) from None
    finally:
        quiet.setLevel(level)
    assert made is not None
    (folder / FILE).write_bytes(made.model_proto.SerializeToString())
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def graph(x: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: x.numpy()})
        return torch.from_numpy(np.asarray(logits))

    compared = differences(run, graph)
    return f"""\
```python
import onnxruntime  # {onnxruntime.__version__} was tried

session = onnxruntime.InferenceSession("{FILE}")
(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": x}})  # {takes(run)}
```

{compared} onnxruntime adds up in another order than PyTorch: in one sample of some thousands that may move a spike, as another
number of threads may."""
