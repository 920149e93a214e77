"""the network over all its time steps as a graph that PyTorch runs without snn_repro."""

import io
import warnings
from pathlib import Path

import torch

from snn_repro.registry import EXPORTS
from snn_repro.trained.export._unrolled import differences, takes, unrolled
from snn_repro.trained.load import TrainedRun

FILE = "model.pt2"


@EXPORTS.register("torch_export")
def write(run: TrainedRun, folder: Path) -> str:
    """model.pt2: see `unrolled`."""
    buffer = io.BytesIO()
    torch.export.save(unrolled(run), buffer)
    (folder / FILE).write_bytes(buffer.getbuffer())  # torch hides the reason of a failed write
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of itself
        compared = differences(run, torch.export.load(folder / FILE).module())
    return f"""\
```python
import torch  # {torch.__version__} wrote it

network = torch.export.load("{FILE}").module()
logits = network(x)  # {takes(run)}
```

{compared}"""
