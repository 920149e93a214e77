"""The door of the kernels: which backend runs a layer, what happens where nothing can be compiled, where compiled loops lie."""

import shutil
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from snn_repro import kernels
from snn_repro.config import checked, config_hash, load_config, to_dict
from snn_repro.config.compose import recomposed
from snn_repro.errors import UserError
from snn_repro.kernels import compiled, conv, conv_cpu, door, neuron_cpu
from snn_repro.models import build_model
from snn_repro.neurons import build_neuron

SMALL = dict(num_classes=10, input_shape=(1, 8, 8), timesteps=4)


@pytest.fixture
def untried(monkeypatch):
    """As in a process that has compiled nothing yet."""
    monkeypatch.setattr(compiled, "_tried", set())
    monkeypatch.setattr(compiled, "_reason", None)


def raising(*args):
    raise RuntimeError("LLVM ERROR: unknown\n  processor")


def losses(steps=3, **options):
    torch.manual_seed(0)
    model = build_model("small", **{**SMALL, "neuron": {"name": "if", "imp": True}, **options})
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        loss = model(torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))).logsumexp(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("loop", ["_forward", "_backward"])
def test_without_a_compiler_the_reference_computes_and_one_warning_says_so(untried, monkeypatch, loop):
    """A backward loop that does not compile is noticed before the forward pass that would need it."""
    wanted = losses(kernels="off")
    monkeypatch.setattr(neuron_cpu, loop, raising)
    with pytest.warns(
        RuntimeWarning, match="numba cannot compile .*LLVM ERROR: unknown processor.*using PyTorch"
    ) as said:
        assert losses() == wanted
        assert losses() == wanted
    assert len([w for w in said if w.category is RuntimeWarning]) == 1
    assert door.resolve_backend("auto", "cpu") == "torch" and "LLVM" in compiled.broken()
    with pytest.raises(UserError, match="needs numba, which fails here .*LLVM ERROR"):
        build_neuron("if", backend="cpu")(torch.ones(2, 1, 3))


@pytest.mark.parametrize("loop", ["forward", "weight_gradient", "to_bytes"])
def test_a_convolution_that_does_not_compile_is_torchs(untried, monkeypatch, loop):
    torch.manual_seed(0)
    layer, x = conv.Conv2d(32, 32, 3, padding=1), (torch.rand(16, 32, 16, 16) < 0.1).float()
    (wanted,) = torch.autograd.grad(torch.nn.Conv2d.forward(layer, conv.channels_last(x)).square().sum(), layer.weight)
    monkeypatch.setattr(conv_cpu, loop, raising)
    with pytest.warns(RuntimeWarning, match="numba cannot compile"):
        y = layer(x)
    assert torch.equal(torch.autograd.grad(y.square().sum(), layer.weight)[0], wanted)
    layer.backend = "sparse"
    with pytest.raises(UserError, match="needs numba"):
        layer(x)


def test_off_is_the_reference_everywhere():
    """Bit for bit the backends by their own names, and no operator of ours is called."""
    by_name = losses(conv_backend="dense", neuron={"name": "if", "imp": True, "backend": "torch"})
    assert losses(kernels="off") == by_name
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        seen = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.add(function.name())
            return function(*args, **(kwargs or {}))

    model = build_model(
        "vgg128", num_classes=10, input_shape=(2, 32, 32), timesteps=2, neuron={"name": "lif"}, kernels="off"
    )
    with Names() as mode:
        model(torch.rand(2, 2, 2, 32, 32)).sum().backward()
    assert mode.seen and not [name for name in mode.seen if "snn_repro" in name]


@pytest.mark.parametrize("word", kernels.KERNELS)
def test_one_word_chooses_for_a_whole_network(word):
    model = build_model("small", **SMALL, neuron={"name": "if"}, kernels=word)
    spiking, convolutions = kernels.KERNELS[word]
    assert {m.backend for m in model.modules() if hasattr(m, "law")} == {spiking}
    assert {m.backend for m in model.modules() if isinstance(m, conv.Conv2d)} == {convolutions}
    with door.off(model):
        assert {m.backend for m in model.modules() if hasattr(m, "backend")} == {"torch"}
    assert {m.backend for m in model.modules() if isinstance(m, conv.Conv2d)} == {convolutions}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(kernels="of"), "kernels='of' is not one of auto, off, .*did you mean 'off'"),
        (dict(kernels="off", conv_backend="sparse"), "kernels=off and conv_backend=sparse both select a backend"),
        (
            dict(kernels="off", neuron={"name": "if", "backend": "cpu"}),
            "kernels=off and neuron.backend=cpu both select",
        ),
        (dict(kernels="spikingjelly", neuron={"name": "leaky"}), "spikingjelly fires at h >= v_th only"),
    ],
)
def test_words_that_cannot_be(given, message):
    with pytest.raises(UserError, match=message):
        build_model("small", **{**SMALL, "neuron": {"name": "if"}, **given})


@pytest.mark.parametrize("former", ["neuron.backend=torch", "model.conv_backend=sparse"])
def test_one_key_chooses_for_a_run_and_is_no_part_of_its_hash(former):
    """The two keys before it are refused where they are typed, and left out of what old runs have stored."""
    plain, off = load_config([]), load_config(["kernels=off"])
    stored, (key, value) = to_dict(plain), former.split("=")
    group, last = key.split(".")
    stored[group][last] = value
    assert config_hash(stored) == config_hash(plain) == config_hash(off) and checked(stored) == plain
    assert plain.kernels == "auto"
    for words in ([former], [f"+{former}"]):
        with pytest.raises(UserError, match=f"^{key} is no longer a key: .* write kernels= one of: auto, off, "):
            load_config(words)
    with pytest.raises(UserError, match=f"^{key} is no longer a key"):
        recomposed(to_dict(plain), [former])


def test_a_layer_is_asked_once_a_forward(monkeypatch):
    asked, choose = [], door.choose
    monkeypatch.setattr(door, "choose", lambda *a: asked.append(a) or choose(*a))
    for word in ("auto", "off"):
        build_model("small", **SMALL, neuron={"name": "if"}, kernels=word)(torch.rand(2, 1, 8, 8))
        assert len(asked) == 3
        asked.clear()


# where compiled loops lie


def test_a_changed_piece_is_compiled_anew(tmp_path, monkeypatch):
    """The folder's name changes with any source of the kernels, so a loop never runs with an old piece in it."""
    for path in Path(compiled.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
    names = []
    for changed in ("", "lanes.py", "neuron_cpu.py"):
        if changed:
            with open(tmp_path / changed, "a") as file:
                file.write("# changed\n")
        names.append(compiled.fingerprint.__wrapped__())
    assert len(set(names)) == 3 and names[-1] == compiled.fingerprint.__wrapped__()


def test_loops_lie_in_the_users_cache_and_numbas_own_setting_stays(tmp_path, monkeypatch):
    """Loaded by the next that compiles them; what else the user compiles lies where it always did."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    compiled._folder.cache_clear()
    try:
        for hits in (0, 1):
            loop = compiled.compiled(conv_cpu._pack.py_func)
            loop(*(np.zeros(1, kind) for kind in ("f4", "i4", "u1")), 0, 1, np.float32(1), np.float32(1))
            assert sum(loop.stats.cache_hits.values()) == hits and numba.config.CACHE_DIR == ""
    finally:
        compiled._folder.cache_clear()
    (folder,) = (tmp_path / "snn_repro").glob("compiled-*")
    assert list(folder.rglob("conv_cpu*.nbc"))
