"""weights bit by bit with the configuration: `load_run` gives the network back."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from snn_repro import __version__
from snn_repro.config import to_dict
from snn_repro.registry import EXPORTS
from snn_repro.runs.folder import METRICS, RESULT
from snn_repro.trained.load import SAFETENSORS, SAVED, TrainedRun

PLACES = ("data_dir", "cache_dir", "run_dir")  # of this machine: no part of what is handed on


@EXPORTS.register("safetensors")
def write(run: TrainedRun, folder: Path) -> str:
    """model.safetensors with every parameter and buffer, config.json, result.json and metrics.jsonl."""
    state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in run.model.state_dict().items()}
    (folder / SAFETENSORS).write_bytes(save(state, metadata={"format": "pt", "snn_repro": __version__}))
    config = to_dict(run.config) | dict.fromkeys(PLACES)
    _write(folder / SAVED, dict(config=config, epoch=run.epoch, weights=run.weights))
    assert run.result is not None
    content = {key: value for key, value in run.result.items() if key != "folder"}
    _write(folder / RESULT, content | {"config": content["config"] | dict.fromkeys(PLACES)})
    if (run.path / METRICS).is_file():
        shutil.copyfile(run.path / METRICS, folder / METRICS)
    shape = list(run.input_shape)
    return f"""\
```python
from snn_repro.trained import load_run  # pip install "snn_repro[export]"

run = load_run("this/folder")  # or huggingface_hub.snapshot_download("owner/name")
logits = run.model(x)  # static images [B, *{shape}] or frames [T, B, *{shape}] -> [T, B, {run.num_classes}]
```

`{SAFETENSORS}` holds the values bit by bit, `{SAVED}` the whole configuration, from which `python -m snn_repro.train` trains such a
network again, `{RESULT}` and `{METRICS}` what was measured."""


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
