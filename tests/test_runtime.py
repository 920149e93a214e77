"""What a run asks of its device: memory order, cuDNN, the compiler, and what of it the result says."""

import pytest
import torch

from snn_repro import runtime
from snn_repro.config import ConfigError, config_hash, load_config
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.neurons import build_neuron
from snn_repro.runs import checkpoint

SMALL = dict(num_classes=10, input_shape=(1, 8, 8), timesteps=2, neuron={"name": "if", "imp": True})


class Cuda:
    """A device that says it is a GPU."""

    type = "cuda"


def test_on_cuda_initial_states_lie_as_the_kernels_see_them(monkeypatch):
    model = build_model("small", **SMALL)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, *a, to=torch.nn.Module.to, **k: to(self, **k) if k else self
    )
    imp = model.sn2.imp
    assert runtime.channels_last(model, Cuda()) is model and model.sn2.imp is imp
    channels, height, width = imp.shape
    assert imp.stride() == (1, width * channels, channels)
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    (model(torch.rand(3, 1, 8, 8)).square().sum()).backward()
    assert imp.grad.shape == imp.shape and imp.grad.any()
    assert runtime.channels_last(build_model("small", **SMALL), torch.device("cpu")).sn2.imp.is_contiguous()


def test_cudnn_tries_its_algorithms_by_a_key_that_is_in_no_hash(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    state = torch.get_rng_state(), torch.get_deterministic_debug_mode()
    try:
        for words, wanted in (
            ([], False), (["deterministic=false"], True), (["cudnn_benchmark=always"], True),
            (["deterministic=false", "cudnn_benchmark=never"], False),
        ):  # fmt: skip
            runtime.seed_everything(load_config(words))
            assert torch.backends.cudnn.benchmark == wanted, words
    finally:
        torch.set_rng_state(state[0])
        torch.set_deterministic_debug_mode(state[1])
    assert config_hash(load_config(["cudnn_benchmark=always"])) == config_hash(load_config([]))
    with pytest.raises(ConfigError, match="cudnn_benchmark='sometimes' is not one of auto, always, never"):
        load_config(["cudnn_benchmark=sometimes"])


def test_words_of_compile(monkeypatch):
    asked: list[dict] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: asked.append(how))
    for word, value, how in (("true", True, {}), ("reduce-overhead", "reduce-overhead", {"mode": "reduce-overhead"})):
        config = load_config([f"compile={word}"])
        assert config.compile == value and config_hash(config) == config_hash(load_config([]))
        runtime.compile_network(torch.nn.Linear(1, 1), Cuda(), config.compile)
        assert asked.pop() == how
    with pytest.raises(ConfigError, match="compile='fast' is not one of false, true, default, reduce-overhead"):
        load_config(["compile=fast"])


def test_results_of_a_gpu_name_its_arithmetic(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(runtime, "prepare", lambda model, device, dtypes, steps: f"checked {dtypes} {steps}")
    config = load_config(["kernels=triton"])
    found = runtime.conditions(config, Cuda(), "fp16 autocast", torch.nn.Linear(1, 1))
    assert found["cuda"]["gpu"] == "a GPU" and found["cuda"]["tf32_convolutions"] == torch.backends.cudnn.allow_tf32
    assert found["neuron_backend"] == "checked (torch.float16, torch.float32) 4"
    assert "cuda" not in runtime.conditions(config, torch.device("cpu"), "float32", torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "families, watched, said",
    [(["if"], False, "cpu"), (["if"], True, "torch"), (["lif", "glif"], False, "cpu and torch")],
)
def test_the_backend_of_a_result_is_what_its_layers_ran(families, watched, said):
    model = torch.nn.Sequential(*(build_neuron(family, timesteps=2, state_shape=(2, 1, 1)) for family in families))
    if watched:
        build_loss("rmp").watch(model)
    assert runtime.conditions(load_config([]), torch.device("cpu"), "float32", model)["neuron_backend"] == said


@pytest.fixture
def two_gpus(monkeypatch):
    """As on a machine with two; returns the indices that were made torch's current one."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_gpu_is_chosen_by_its_number(two_gpus, monkeypatch):
    assert runtime.pick_device(load_config(["device=cuda:1"])) == torch.device("cuda", 1)
    assert two_gpus == [1], "what torch allocates by itself would lie on another GPU"
    assert runtime.pick_device(load_config(["device=cuda"])) == torch.device("cuda")
    with pytest.raises(ConfigError, match="^device=cuda:2 does not exist; torch sees cuda:0 Card 0, cuda:1 Card 1$"):
        runtime.pick_device(load_config(["device=cuda:2"]))
    monkeypatch.setattr(runtime.distributed, "world", lambda: runtime.distributed.World(1, 2, 1))
    with pytest.raises(ConfigError, match="device=cuda:1 is one GPU for 2 processes"):
        runtime.pick_device(load_config(["device=cuda:1"]))


def test_the_number_changes_no_hash_and_must_be_one():
    assert config_hash(load_config(["device=cuda:1"])) == config_hash(load_config([]))
    for word in ("cuda:x", "cuda:", "cuda:-1", "cuda:N", "gpu"):
        with pytest.raises(ConfigError, match=f"device='{word}' is not one of auto, cpu, cuda, cuda:N"):
            load_config([f"device={word}"])
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device=cuda:1 but torch sees no GPU"):
            runtime.pick_device(load_config(["device=cuda:1"]))


def test_a_checkpoint_moves_between_machines_with_other_numbers_of_gpus(two_gpus, monkeypatch):
    """Only the run's own generator is kept, and no context is made on GPUs of others."""
    put = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", put.append)
    state = checkpoint.rng_state()
    assert state["cuda"] == [torch.tensor([7])]
    checkpoint.set_rng_state(state)
    assert put == [torch.tensor([7])]
