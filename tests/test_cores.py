"""Loader processes come from the cores that the job has."""

import os

import pytest
import torch

from snn_repro import distributed
from snn_repro.config import load_config
from snn_repro.data.build import loader_processes

CONFIGS = [load_config(["dataset=digits", *more]) for more in ((), ("device=cpu",), ("dataset.workers=5",))]


@pytest.mark.parametrize(
    "environment, cores",
    [({}, 12), ({"SLURM_CPUS_PER_TASK": "4"}, 4), ({"LOCAL_WORLD_SIZE": "4"}, 3), ({"SLURM_CPUS_PER_TASK": "64"}, 12),
     ({"LOCAL_WORLD_SIZE": "64"}, 1)],
)  # fmt: skip
def test_processes_are_the_jobs_cores(monkeypatch, environment, cores):
    for name in ("SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert distributed.cores() == cores
    for gpu, processes in ((False, 0), (True, cores - 1)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert [loader_processes(config) for config in CONFIGS] == [processes, 0, 5]
