"""Training on cuda:0 without a GPU (see pretended.py): the numbers of a CPU, and no step that waits for the device.

torch must not be imported when the device is made up, so the runs are those of a process of their own (`runs.py`).
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import same_numbers
import torch
from pretended import build

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None or shutil.which("g++") is None, reason="needs torch for the CPU, and g++"
)

IMAGES = ["dataset=digits", "augment.crop_padding=1"]
FRAMES = ["dataset=digits_dvs", "neuron=lif_imp", "loss=tet_s"]
RUNS = {
    "images": [*IMAGES, "augment.mixup=0.2", "augment.cutmix=1", "neuron=if_imp", "loss=lts"],
    "frames": [*FRAMES, "augment.cutmix=1", "augment.flip=0.5"],
    "frames from the host": [*FRAMES, "augment.event_policy=true", "dataset.on_device=false"],
    "a step without a form for a device": [*FRAMES, "augment.eventmix=1"],
    "float16": [*IMAGES, "recipe.amp=fp16", "recipe.clip_norm=1", "neuron=if", "neuron.initial=mp_init"],
    "the loss that compares steps": [*IMAGES, "loss=strong2weak", "loss.cascade=true"],
    "potentials in the loss": [*IMAGES, "neuron=if", "loss=rmp", "neuron.initial=half"],
    "parallel neurons": [*FRAMES, "neuron=masked_psn"],
    "interrupted, continued and tested": [*IMAGES, "recipe.ema_decay=0.5", "recipe.optimizer=adamw"],
}
FUSED = [  # in Triton's interpreter
    "dataset=digits", "kernels=triton", "recipe.epochs=1", "timesteps=2", "recipe.batch_size=8", "recipe.eval_batch_size=8",
]  # fmt: skip
MORE = {
    **{f"recipe.optimizer={name}": [*IMAGES, f"recipe.optimizer={name}"] for name in ("sgd", "adam")},
    **{f"augment.{key}": [*FRAMES, f"augment.{key}"] for key in ("nda=true", "rpg_drop=0.5", "rpg_mix=0.5")},
    **{f"model.checkpointing={how}": [*IMAGES, f"model.checkpointing={how}"] for how in ("norms", "blocks")},
    "a batch in parts": [*IMAGES, "recipe.accumulate=2"],
    "bfloat16": [*IMAGES, "recipe.amp=bf16"],
    "fused": FUSED,
    "compiled steps": [*IMAGES, "neuron=plif", "kernels=compile"],
    "fused, float16": [*FUSED, "recipe.amp=fp16"],
}
# What goes by the network's view, on the host; a surrogate that is read back in each backward pass.
WAIT = {"augment.rpg_drop=0.5", "augment.rpg_mix=0.5", "digits surrogate=dspike_adaptive"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pretended"))


@pytest.fixture(scope="module")
def outcomes(library):
    """{name: what runs.py says} of runs of these names and overrides."""
    folder = library.parent

    @cache
    def found(names: str) -> dict:
        (folder / "runs.json").write_text(names)
        out = folder / "out.json"
        command = [sys.executable, Path(__file__).with_name("runs.py"), library, folder / "runs.json", out]
        usual = {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env={**os.environ, **usual}, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stderr[-4000:]
        return {said["name"]: said for said in json.loads(out.read_text())}

    return lambda runs: found(json.dumps(runs))


def hold(said: dict) -> None:
    assert said["error"] is None, said["error"]
    assert said["name"] in WAIT or not said["waits"], said["waits"]
    if said["cpu"] is not None:
        # to the last bit, but where another order of memory is another order of sums, which moves spikes
        for cpu, cuda in zip(said["cpu"], said["cuda"], strict=True):
            assert cuda == pytest.approx(cpu, rel=0.01)


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_those_of_a_cpu_and_no_step_waits(outcomes, name):
    hold(outcomes(RUNS)[name])


WRONG = """
import sys
from pathlib import Path
from pretended import load, pretended
load(Path(sys.argv[1]))
import torch
host = torch.ones(3)
with pretended() as device:
    there = torch.ones(3, device="cuda:0")
    try:
        there + host
    except RuntimeError as error:
        print(error)
    there + torch.ones(())  # a single number may come from the host
    device.watched = True
    for wait in (
        lambda: float(there.sum()), lambda: there.cpu(), lambda: host.to("cuda:0"), lambda: host.to("cuda:0", non_blocking=True),
        lambda: there[torch.tensor([0, 2])], lambda: there[there > 0], lambda: host.pin_memory().to("cuda:0", non_blocking=True),
    ):
        wait()
        print(*(wait.split(" at ")[0] for wait in device.waits))
        device.waits.clear()
"""


def test_what_a_gpu_refuses_and_waits_for_is_found(library):
    """The device itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", WRONG, library], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "aten.add.Tensor of tensors on cuda:0 and of one on the host, [3]", "read", "read", "blocking copy",
        "copy of what is not pinned", "index from the host", "index by a mask", "",
    ], done.stderr  # fmt: skip


REPORT = """
import sys
from pathlib import Path
from pretended import load, pretended
load(Path(sys.argv[1]))
import benchmark
import torch
from benchmarks import gpu
from snn_repro.kernels import Law, selfcheck

def checked_here(case):
    return selfcheck.examine(Law(*case["law"]), getattr(torch, case["dtype"]), case["steps"], torch.device("cpu"))

def other_spikes(family, backend, device, *more, of=gpu._outcome):
    spikes, *gradients = of(family, backend, device, *more)
    return [1 - spikes if (family, device) == ("klif", "cuda") else spikes, *gradients]

selfcheck._run_subprocess, selfcheck.CASES, gpu._outcome = checked_here, selfcheck.CASES[:1], other_spikes
gpu.MINUTES = 1000  # a machine of tests may be busy
gpu.golden_losses = lambda of=gpu.golden_losses: of() | {("clif", "sdt"): [2.0]}
twice = "steps of VGG-48", "layers of VGG-48"  # toys, as those of the other network
gpu.PARTS = {"broken": lambda *_: 1 / 0} | {name: part for name, part in gpu.PARTS.items() if name not in twice}
with pretended():
    sys.exit(benchmark.main(["gpu", "quick=true", "--output", sys.argv[2]]))
"""


@pytest.mark.slow
def test_the_report_of_a_gpu_says_what_is_not_right_first(library, tmp_path):
    scripts = Path(__file__).parents[2] / "scripts"
    usual = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    path = os.pathsep.join([str(Path(__file__).parent), str(scripts), *sys.path])
    command = [sys.executable, "-c", REPORT, library, tmp_path / "out"]
    done = subprocess.run(command, env=os.environ | usual | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    text, saved = sorted((tmp_path / "out").iterdir(), reverse=True)
    assert text.name.startswith("a-pretended-gpu-20") and text.suffix == ".md" and saved.stem == text.stem
    report = json.loads(saved.read_text())
    wrong, page = report["not_right"], text.read_text()
    parts = "broken: no result (ZeroDiv", "klif, backend=", "clif, loss=sdt, kernels="
    assert all(line.startswith(parts) for line in wrong), wrong
    assert all(any(line.startswith(part) for line in wrong) for part in parts), wrong
    assert page.index(wrong[0]) < page.index("- GPU: a pretended GPU") < page.index("| ours |")
    assert {"GPU", "driver", "CUDA", "torch", "triton", "spikingjelly"} <= report["machine"].keys()
    rows = {table["title"].partition(": ")[0]: table["rows"] for table in report["tables"]}
    assert [*rows] == [
        "self-check", "equality with the CPU", "losses", "steps of SEW-ResNet-18", "layers of SEW-ResNet-18", "data",
        "self-check of more layers",
    ]  # fmt: skip
    assert {f"if, backend={b}" for b in ("torch", "triton", "spikingjelly")} < rows["equality with the CPU"].keys()
    assert rows["losses"].keys() > {f"if, loss=sdt, kernels={kernels}" for kernels in ("off", "triton")}
    assert rows["self-check"]["if, float32, T=2"]["verdict"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_of_the_same(outcomes, name):
    hold(outcomes({name: MORE[name]})[name])


@pytest.mark.slow
def test_every_neuron_loss_and_data_set(outcomes, tmp_path):
    """The runs of same_numbers.py, but those of the largest frames."""
    skipped = "table1_dvs_gesture_tet", "table2_cifar10dvs48_t8_imp_tet_s"
    short, runs = ["debug.max_steps=3", "debug.max_eval_batches=3", "recipe.eval_batch_size=2"], {}
    for name, overrides in same_numbers.words(tmp_path).items():
        if name not in skipped:
            own = [o for o in overrides if not o.startswith(("debug.", "recipe.epochs", "recipe.eval_batch_size"))]
            runs[name] = own + short * (not name.startswith("digits"))
    found = outcomes(runs).values()
    for said in found:
        hold(said)
    assert sum(said["cpu"] == said["cuda"] for said in found) > 0.8 * len(found)
