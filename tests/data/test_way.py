"""A frame's way from disk to logits passes few files, so that it can be read in one sitting."""

import inspect
import sys
from pathlib import Path

import pytest
from fixtures import make_cache as prepare
from fixtures import write_cifar10_dvs

import snn_repro
from snn_repro.config import load_config
from snn_repro.data import build_data
from snn_repro.kernels import neuron as fused
from snn_repro.kernels.door import use
from snn_repro.models import build_model
from snn_repro.registry import AUGMENTATIONS

PACKAGE = Path(snn_repro.__file__).parent
MOST = 14  # two of them the door of the kernels and its threads


def files_of(call):
    """The package's files of which a function runs, in the order of the first one's call."""
    files = {}

    def watch(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in path.parents:
            files[str(path.relative_to(PACKAGE))] = None

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(files)


@pytest.mark.filterwarnings("ignore:.*do not compare")
@pytest.mark.parametrize("dataset", ["cifar10_dvs", "digits"])
def test_from_disk_to_logits_in_few_files(tmp_path, dataset, monkeypatch):
    """By all fast loops; `kernels=off` takes fewer. Compiling these, which happens once on a machine, is not a part of the way.

    Augmentations, one file each, come on top: as many as a row chooses.
    """
    monkeypatch.setattr(fused, "fresh", False)  # as in a run
    words, network = [f"dataset={dataset}", "timesteps=2", "recipe.batch_size=2", f"cache_dir={tmp_path}"], "small"
    if dataset == "cifar10_dvs":
        write_cifar10_dvs(tmp_path / "raw")
        prepare(dataset, tmp_path / "raw", tmp_path, 2, frame_size=48, workers=0, say=lambda _: None)
        words, network = [*words, "dataset.frame_size=48"], "vgg48"
    data, neuron = build_data(load_config(words)), {"name": "lif", "imp": True}
    model = build_model(network, num_classes=10, input_shape=data.input_shape, timesteps=2, neuron=neuron)
    use(model, "sparse")

    def way():
        x, _ = next(data.train.epoch(0))
        assert model(x).shape == (2, 2, 10)

    way()
    passed = files_of(way)
    chosen = {inspect.getfile(cls) for cls in AUGMENTATIONS.values()}
    house = [name for name in passed if str(PACKAGE / name) not in chosen]
    assert {"data/batches.py", "data/augment/augmentation.py", "neurons/layer.py"} <= {*house}
    assert len(house) <= MOST, f"{len(house)} files on the way: {', '.join(house)}"
