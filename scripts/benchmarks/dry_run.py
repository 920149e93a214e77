"""Accuracy of `dry_run=true`: estimated against real time and memory of a first epoch, five networks.

Fresh processes, estimates and real runs alternating, with compiled kernels in the cache. Time is CPU time of one
thread. Memory is the peak of a process that trains one epoch.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks._report import Report, Table
from snn_repro.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("logger.mode=disabled", "recipe.epochs=1", "recipe.warmup_epochs=0", "threads=1")
SMALL_BATCHES = ("recipe.eval_batch_size=16", "debug.max_eval_batches=4", "dataset.validation=0")
NETWORKS = {
    "small": ("dataset=digits_dvs", "neuron=lif_imp", "loss=tet"),
    "sew_resnet18_cifar": ("dataset=digits", "model=sew_resnet18_cifar", "dataset.train_subset=320", *SMALL_BATCHES),
    "vgg128": (
        "dataset=digits_dvs", "model=vgg128", "neuron=leaky_imp", "loss=tet", "timesteps=4", "recipe.batch_size=8",
        "dataset.train_subset=160", *SMALL_BATCHES,
    ),
    "plif_net_dvs": (
        "dataset=digits_dvs", "model=plif_net_dvs", "neuron=plif", "timesteps=4", "recipe.batch_size=8", "dataset.train_subset=160",
        *SMALL_BATCHES,
    ),
    "spikformer_cifar": (
        "dataset=digits", "model=spikformer_cifar", "neuron=lif", "recipe.batch_size=16", "dataset.train_subset=320", *SMALL_BATCHES,
    ),
}  # fmt: skip
CLOCK = "import time; time.perf_counter = time.process_time\n"  # with one thread they agree on an idle machine
REAL = """import sys
from snn_repro.config import load_config
from snn_repro.train import run
run(load_config(sys.argv[1:]))"""
ESTIMATE = """import json, sys
from snn_repro.config import load_config
from snn_repro.dry_run import dry_run
report = dry_run(load_config(sys.argv[1:]))
print(json.dumps([report.warm_up_seconds + report.epoch_seconds, report.memory_mb]))"""


def measure(rounds: int = 3, quick: bool = False) -> Report:
    """Run the benchmark and return its report."""
    networks = {"small": (*NETWORKS["small"], "dataset.train_subset=64")} if quick else NETWORKS
    rows = {}
    for name, words in networks.items():
        _estimated(words)  # fills the cache of compiled kernels
        pairs = [(_estimated(words), _real(words)) for _ in range(1 if quick else rounds)]
        estimate, real = ([median(values) for values in zip(*side, strict=True)] for side in zip(*pairs, strict=True))
        rows[name] = {
            "estimated seconds": estimate[0], "first epoch, seconds": real[0], "time, estimated / real": estimate[0] / real[0],
            "estimated MB": estimate[1], "real MB": real[1], "memory, estimated / real": estimate[1] / real[1],
            "all ratios of time": [t[0] / r[0] for t, r in pairs],
        }  # fmt: skip
    how = "CPU time of the first epoch with its warm-up, training and evaluation; medians of pairs in turn."
    return Report("Estimates of dry_run=true", how, [Table("First epoch", rows, unit="s")], ("torch", "numba"))


def _python(*words: str) -> tuple[str, float]:
    """(output, peak memory in MB) of a Python process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen([sys.executable, *words], env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        if process.returncode:
            raise UserError(
                f"{' '.join(words[1:])} ended with exit code {process.returncode}: {err.read().strip()[-300:]}"
            )
        return out.read(), usage.ru_maxrss / 1024


def _estimated(words: tuple[str, ...]) -> list[float]:
    return json.loads(_python("-c", CLOCK + ESTIMATE, *SHORT, *words)[0].splitlines()[-1])


def _real(words: tuple[str, ...]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        _, memory = _python("-c", CLOCK + REAL, *SHORT, *words, f"hydra.run.dir={folder}/run")
        line = json.loads(Path(folder, "run", "metrics.jsonl").read_text().splitlines()[0])
    return [line["seconds"], memory]
