"""Initial states: where each one starts, what is learned, and what stays the same by every backend."""

import pytest
import torch

from snn_repro.config import ConfigError, load_config
from snn_repro.errors import UserError
from snn_repro.models import build_model
from snn_repro.neurons import NEURONS, Neuron, build_neuron
from snn_repro.optim import parameter_kind

SHAPE = (3, 4, 5)


def spikes_of(name: str, **settings) -> str:
    """Spikes of one IF neuron under an input of 0.4 at each of 4 steps."""
    x = torch.full((4, 1, 1), 0.4, dtype=torch.float64)
    return "".join(str(int(s)) for s in build_neuron("if", initial=name, backend="torch", **settings)(x).flatten())


def test_where_each_state_starts():
    assert spikes_of("zero") == "0010"
    assert spikes_of("constant", initial_value=0.25) == "0100"
    assert spikes_of("half") == spikes_of("constant", initial_value=0.5) == "0101"
    assert spikes_of("half", v_threshold=0.8) == "1010"  # 0.4 + 0.4 reaches the threshold at once


def test_mp_init_follows_published_numbers():
    neuron = build_neuron("lif", initial="mp_init", tau=2.0)
    x = torch.tensor([[[2.8, 0.5, 2.4]], [[1.0, 0.5, 0.2]]])
    neuron(x)
    assert neuron.v.flatten().tolist() == pytest.approx([0.7, 0.375, 0.2])
    assert neuron.running_v.item() == pytest.approx(0.045)  # the second neuron never fired
    neuron(x)
    assert neuron.running_v.item() == pytest.approx(0.086625)
    neuron.eval()(x)
    assert neuron.running_v.item() == pytest.approx(0.086625)
    again = build_neuron("lif", initial="mp_init", tau=2.0)
    again.load_state_dict(neuron.state_dict())
    assert again.running_v.item() == neuron.running_v.item()
    silent = build_neuron("if", initial="mp_init")
    silent(torch.zeros(2, 3, 4))
    assert silent.running_v == 0


def test_values_shared_by_a_channel_or_layer_have_the_sum_of_the_neurons_gradients():
    x = torch.randn(4, 2, *SHAPE)
    gradients = {}
    for name in ("imp", "imp_channel", "imp_layer"):
        neuron = build_neuron("if", initial=name, state_shape=SHAPE)
        with torch.no_grad():
            neuron.imp.fill_(0.5)
        (neuron(x) * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum().backward()
        gradients[name] = neuron.imp.grad
        assert parameter_kind(neuron, "imp") == "imp"
    assert gradients["imp"].shape == SHAPE
    assert gradients["imp_channel"].shape == (3, 1, 1) and gradients["imp_layer"].shape == (1, 1, 1)
    torch.testing.assert_close(gradients["imp_channel"].flatten(), gradients["imp"].sum((1, 2)))
    torch.testing.assert_close(gradients["imp_layer"].flatten(), gradients["imp"].sum().view(1))


def started(family: str, name: str, value: float | None = None, **settings):
    """A neuron that starts from `name`, its spikes and gradient; with `value`, what it learns or counts is that."""
    torch.manual_seed(3)
    neuron = build_neuron(family, initial=name, state_shape=SHAPE, timesteps=5, **settings)
    for state in (neuron.imp, *neuron.buffers()):
        if state is not None and value is not None:
            state.data.fill_(value)
    x = torch.randn(5, 2, *SHAPE, generator=torch.Generator().manual_seed(4)).add_(0.3).requires_grad_()
    spikes = neuron(x)
    (spikes * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum().backward()
    return neuron, spikes.detach(), x.grad


@pytest.mark.parametrize("family", [n for n, cls in NEURONS.items() if "initial" in cls.settings])
def test_every_neuron_with_a_potential_starts_from_every_state(family):
    """As with one learned value a neuron that is the same number."""
    mine = started(family, "imp", 0.375)
    for name in ("imp_channel", "imp_layer", "mp_init"):
        torch.testing.assert_close(started(family, name, 0.375)[1:], mine[1:])
    torch.testing.assert_close(started(family, "constant", initial_value=0.375)[1:], mine[1:])
    half, spikes, grad = started(family, "half")
    torch.testing.assert_close(
        (spikes, grad), started(family, "imp", float(torch.as_tensor(half.v_threshold).detach()) / 2)[1:]
    )
    nothing = started(family, "zero")
    torch.testing.assert_close(nothing[1:], started(family, "imp", 0.0)[1:])
    assert not torch.equal(nothing[1], started(family, "imp", 0.75)[1]) and mine[0].imp.grad.abs().max() > 0
    running = started(family, "mp_init")[0]
    fired = running.running_v.item(), nothing[0].v[nothing[1].any(0)].mean().item() / 10
    assert fired[0] == pytest.approx(fired[1], rel=1e-4) and fired[0] != 0


def test_random_draws_a_sample_in_training_and_starts_in_the_middle_in_evaluation():
    neuron = build_neuron("if", initial="random", imp_init=[0.2, 0.6])
    x = torch.zeros(1, 64, 8)
    neuron(x)
    first = neuron.v.clone()
    neuron(x)
    assert 0.2 <= first.min() and first.max() <= 0.6 and first.std() > 0.05
    assert not torch.equal(first, neuron.v) and not torch.equal(first[0], first[1])
    neuron.eval()(x)
    assert torch.allclose(neuron.v, torch.tensor(0.4))


def network(name: str, **more):
    torch.manual_seed(0)
    return build_model(
        "small", num_classes=3, input_shape=(1, 8, 8), timesteps=3, neuron={"name": "if", "initial": name}, **more
    )


@pytest.mark.parametrize("what", ["norms", "blocks"])
@pytest.mark.parametrize("name", ["mp_init", "random"])
def test_checkpointing_learns_once_and_draws_the_same(what, name):
    images, found = torch.randn(4, 1, 8, 8), []
    for checkpointing in ("off", what):
        model = network(name, checkpointing=checkpointing, kernels="off")
        torch.manual_seed(5)
        model(images).sum().backward()
        found.append((dict(model.named_buffers()), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


# neuron.initial_layers: some spiking layers start from the initial state, the others at 0


def in_layers(layers=None, **neuron):
    torch.manual_seed(0)
    neuron = {"name": "if"} | neuron | ({} if layers is None else {"initial_layers": layers})
    return build_model("small", num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron=neuron)


@pytest.mark.parametrize("initial", ["imp", "imp_channel", "mp_init", "constant"])
def test_the_named_layers_alone_start_so(initial):
    model, whole = in_layers([2], initial=initial), in_layers(initial=initial)
    assert [layer.initial for layer in [m for m in model.modules() if isinstance(m, Neuron)]] == [
        "zero",
        initial,
        "zero",
    ]
    kept = {k for k in whole.state_dict() if not k.startswith(("sn1.", "sn3."))}
    assert model.state_dict().keys() == kept
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("layers", [[], [0], [4], [1, 1]])
def test_layers_that_are_not_there_are_one_sentence(layers):
    with pytest.raises(UserError, match=r"neuron.initial_layers=\[.*from 1 to 3"):
        in_layers(layers, imp=True)


def test_the_key_needs_an_initial_state_and_leaves_old_hashes_alone():
    with pytest.raises(ConfigError, match="initial_layers=.*has no effect with neuron.initial=zero"):
        load_config(["neuron=if", "neuron.initial_layers=[1]"])
    assert load_config(["neuron=if_imp", "neuron.initial_layers=[1,3]"]).neuron.initial_layers == [1, 3]
