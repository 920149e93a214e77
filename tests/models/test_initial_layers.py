"""neuron.initial_layers: some spiking layers start from the initial state, the others at 0."""

import pytest
import torch

from snn_repro.config import ConfigError, load_config
from snn_repro.errors import UserError
from snn_repro.models import build_model, count_parameters
from snn_repro.neurons import Neuron, initial_states


def network(layers=None, **neuron):
    torch.manual_seed(0)
    neuron = {"name": "if"} | neuron | ({} if layers is None else {"initial_layers": layers})
    return build_model("small", num_classes=10, input_shape=(1, 8, 8), timesteps=4, neuron=neuron)


def spiking(model):
    return [m for m in model.modules() if isinstance(m, Neuron)]


@pytest.mark.parametrize("initial", ["imp", "imp_channel", "mp_init", "constant"])
def test_the_named_layers_alone_start_so(initial):
    model, whole = network([2], initial=initial), network(initial=initial)
    assert [layer.initial for layer in spiking(model)] == ["zero", initial, "zero"]
    kept = {k for k in whole.state_dict() if not k.startswith(("sn1.", "sn3."))}
    assert model.state_dict().keys() == kept
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_layer_that_starts_at_zero_is_the_one_without_imp():
    x = torch.rand(3, 1, 8, 8)
    model, plain = network([1, 3], imp=True), network()
    for name in ("sn1", "sn3"):
        torch.nn.init.zeros_(getattr(model, name).imp)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    assert count_parameters(model)[1] == sum(p.numel() for p in initial_states(model).values())


@pytest.mark.parametrize("layers", [[], [0], [4], [1, 1]])
def test_layers_that_are_not_there_are_one_sentence(layers):
    with pytest.raises(UserError, match=r"neuron.initial_layers=\[.*of 1 to 3"):
        network(layers, imp=True)


def test_the_key_needs_an_initial_state_and_leaves_old_hashes_alone():
    with pytest.raises(ConfigError, match="initial_layers=.*has no effect with neuron.initial=zero"):
        load_config(["neuron=if", "neuron.initial_layers=[1]"])
    assert load_config(["neuron=if_imp", "neuron.initial_layers=[1,3]"]).neuron.initial_layers == [1, 3]
