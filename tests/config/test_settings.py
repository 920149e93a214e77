"""A setting is declared once, beside its class, and is a key with a meaning, a unit and a range."""

import re

import pytest

from snn_repro.config import checked, help_text, load_config, to_dict
from snn_repro.config.schema import Config
from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.neurons import build_neuron
from snn_repro.registry import NEURONS
from snn_repro.settings import Setting


def test_help_shows_meaning_unit_and_range():
    told = help_text()
    for line in (
        r"neuron.tau +neuron=lif.*: membrane time constant \(time steps\) \[at least 1\]",
        r"neuron.reset +neuron=if, lif, .*: soft: v = h - v_th s; .* \[soft \| hard\]",
        r"neuron.initial +neuron=if, .*: initial membrane potential; .* \[zero \| constant \| half \| .*imp_channel.* \| mp_init\]",
        r"loss.epsilon +loss=tet_s.*: label smoothing \[at least 0 and below 1\]",
        r"model.norm +model=.*vgg48.*vgg128.*\[bn \| .*tebn \| tebn_gesture.*\]",
        r"recipe.lr +learning rate \[above 0\]",
    ):
        assert re.search(f"^  {line}$", told, re.MULTILINE), line


WRONG = {  # a value: who builds with it, and how it is typed
    "neuron.tau=0.5": lambda: build_neuron("lif", tau=0.5),
    "neuron.surrogate=arctan": lambda: build_neuron("lif", surrogate="arctan"),
    "neuron.imp_init=[2,1]": lambda: build_neuron("lif", imp_init=[2, 1]),
    "neuron.retain=0.5": lambda: build_neuron("lif", retain=0.5),
    "loss.epsilon=1": lambda: build_loss("tet_s", epsilon=1),
    "loss.lam=0.5": lambda: build_loss("tet_s", lam=0.5),
    "model.norm=batch": lambda: network(norm="batch"),
    "model.dropout=0.5": lambda: network(dropout=0.5),
    "model.checkpointing=all": lambda: network(checkpointing="all"),
}


def network(**options):
    given = dict(num_classes=2, input_shape=(2, 8, 8), timesteps=2, neuron={"name": "if"})
    return build_model("vgg128", **given, **options)


@pytest.mark.parametrize("typed", WRONG)
def test_a_library_call_and_a_command_are_checked_by_the_same_function(typed):
    with pytest.raises(UserError) as called:
        WRONG[typed]()
    with pytest.raises(UserError) as composed:
        load_config(["neuron=lif", "loss=tet_s", "model=vgg128", "dataset=digits_dvs", typed])
    assert str(called.value) == str(composed.value) and typed.split("=")[0] in str(called.value)


def test_settings_are_keys_with_a_value_each():
    config = load_config(["neuron=lif", "loss=sdt", "neuron.tau=3", "neuron.surrogate_width=null"])
    assert config.neuron.own.keys() == NEURONS["lif"].settings.keys() and config.loss.own == {}
    assert (config.neuron.tau, config.neuron.surrogate_width, config.neuron.imp_init) == (3.0, None, [0.4, 0.6])
    assert isinstance(config.neuron.tau, float) and not hasattr(config.neuron, "retain")
    assert to_dict(config)["neuron"]["tau"] == 3.0 and "own" not in to_dict(config)["neuron"]
    assert checked(to_dict(config)) == config and isinstance(config, Config)
    assert load_config(["neuron=lif", "fidelity=described"]).neuron.decay_input is False
    assert not hasattr(load_config(["neuron=if", "fidelity=described"]).neuron, "decay_input")


def test_kinds_of_values():
    word, numbers = Setting("all", "classes"), Setting((6, 6), "heads", low=1)
    assert word.checked("k", "some") == "some" and numbers.checked("k", (1, 2)) == [1, 2]
    assert Setting(None, "x", choices=("a",)).checked("k", None) is None
    for setting, value, said in (
        (word, 3, "k=3 must be a word"), (numbers, [1], r"must be 2 whole numbers of at least 1"),
        (numbers, [0, 1], "at least 1"), (Setting(1, "n", low=1), True, "whole number"), (Setting(1, "n"), 1.5, "whole number"),
        (Setting(1.0, "n", above=0, below=2), 2, "k=2.0 must be above 0 and below 2"), (Setting(False, "b"), 1, "true or false"),
        (Setting(1.0, "n", "ms", low=1), 0, r"k=0.0 must be at least 1 \(ms\)"), (Setting(1.0, "n"), None, "finite number"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            setting.checked("k", value)
