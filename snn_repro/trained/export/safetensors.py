"""Export as safetensors, which `load_run` reads back."""

import shutil
from pathlib import Path

import torch

from snn_repro import __version__
from snn_repro.config import to_dict
from snn_repro.files import write_json
from snn_repro.registry import EXPORTS
from snn_repro.runs.folder import METRICS, RESULT
from snn_repro.trained.load import SAFETENSORS, SAVED, TrainedRun

PLACES = ("data_dir", "cache_dir", "run_dir")  # of this machine: not exported


@EXPORTS.register("safetensors")
def write(run: TrainedRun, folder: Path) -> str:
    """Exact weights and the configuration; `load_run` reads them back.

    Files: model.safetensors (every parameter and buffer), config.json, result.json and metrics.jsonl.
    """
    from safetensors.torch import save

    state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in run.model.state_dict().items()}
    (folder / SAFETENSORS).write_bytes(save(state, metadata={"format": "pt", "snn_repro": __version__}))
    config = to_dict(run.config) | dict.fromkeys(PLACES)
    write_json(folder / SAVED, dict(config=config, epoch=run.epoch, weights=run.weights))
    result = {key: value for key, value in (run.result or {}).items() if key != "folder"}
    write_json(folder / RESULT, result | {"config": result["config"] | dict.fromkeys(PLACES)})
    if (run.path / METRICS).is_file():
        shutil.copyfile(run.path / METRICS, folder / METRICS)
    shape = list(run.input_shape)
    return f"""\
```python
from snn_repro.trained import load_run  # pip install "snn_repro[export]"

run = load_run("this/folder")  # or huggingface_hub.snapshot_download("owner/name")
logits = run.model(x)  # static images [B, *{shape}] or frames [T, B, *{shape}] -> [T, B, {run.num_classes}]
```

`{SAFETENSORS}` has the exact weights, `{SAVED}` the whole configuration, with which `python -m snn_repro.train` can
train the network again, `{RESULT}` and `{METRICS}` the measured numbers."""
