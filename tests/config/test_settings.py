"""A setting is declared once, beside its class; what is read of it from the text of the source is what the class has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from snn_repro import sources
from snn_repro.config import checked, help_text, load_config, to_dict
from snn_repro.config.schema import OWN, Config
from snn_repro.errors import UserError
from snn_repro.losses import build_loss
from snn_repro.models import build_model
from snn_repro.neurons import build_neuron
from snn_repro.registry import NEURONS, Registry
from snn_repro.settings import Setting


@pytest.mark.parametrize("group", OWN)
def test_what_the_source_says_is_what_the_class_has(group):
    """Of all that there is here, so that --help never has to import torch."""
    registry = OWN[group]
    assert set(registry.names()) == set(registry)
    for name in registry:
        assert sources.settings_of(*registry._declared[name]) == dict(registry[name].settings), name


def test_help_needs_no_torch_and_a_typo_is_one_sentence():
    code = (
        "import sys\nfrom snn_repro.config import ConfigError, help_text\nhelp_text()\n"
        "assert not {'torch', 'numpy', 'hydra', 'omegaconf'} & sys.modules.keys()\nfrom snn_repro.config import load_config\n"
        "for words in ('neuron.tua=2', 'neuron.tau=3', 'loss=tet loss.lam=2', 'model=vgg128 model.norm=batch'):\n"
        "    try:\n        load_config(words.split())\n    except ConfigError as error:\n        print(error)\n"
        "load_config(['neuron=lif_imp', 'neuron.tau=3', 'model=vgg128', 'dataset=digits_dvs'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "unknown key 'neuron.tua'; did you mean 'neuron.tau'?",
        "neuron.tau=3 belongs to neuron=lif or clif or ilif or klif or lifb or plif or trsg; leave it out for 'if'",
        "loss.lam=2.0 must be at least 0 and at most 1 (the weight of the mean squared error)",
        "model.norm='batch' is not one of bn, tab, tdbn, tebn, tebn_gesture",
    ]


def test_help_shows_meaning_unit_and_range():
    told = help_text()
    for line in (
        r"neuron.tau +neuron=lif.*: membrane time constant \(time steps\) \[at least 1\]",
        r"neuron.reset +neuron=if, lif, .*: soft: v = h - V_th s; .* \[soft \| hard\]",
        r"neuron.initial +neuron=if, .*: initial membrane potential; .* \[zero \| constant \| half \| .*imp_channel.* \| mp_init\]",
        r"loss.epsilon +loss=tet_s.*: label smoothing \[at least 0 and below 1\]",
        r"model.norm +model=vgg48, vgg128.*\[bn \| .*tebn \| tebn_gesture.*\]",
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


def source(tmp_path: Path, text: str) -> dict:
    (tmp_path / "idea.py").write_text(text)
    return sources.declared(tmp_path / "idea.py", "register", "snn_repro.neurons")


def test_a_source_is_read_and_never_run(tmp_path):
    found = source(tmp_path, '''
import torch
from dataclasses import replace
from snn_repro.neurons import Neuron, Setting, register, settings
from snn_repro.data.sets import register as other
from snn_repro.neurons.lif import LIF

raise SystemExit("run")
BETA = Setting(0.5, "share", low=0, high=1)
def shifted(low, **more):
    """A docstring."""
    return {"shift": Setting(-2 / 2, "a " + "shift", low=low)} | more
def effects(): return __import__("os").system("true")

@register("a")
class A(Neuron):
    settings = settings(dict(reset="hard"), ("imp_init",), beta=replace(BETA, default=0.25), **shifted(-2, extra=BETA))
@register("b")
class B(LIF):
    pass
@register("c")
class C(A):
    settings = A.settings | {"gain": BETA}
@register("d")
class D(Neuron):
    settings = effects()
@register("e")
class E(Neuron):
    settings = {k: BETA for k in "xy"}
@other("set")
class F: ...
''')  # fmt: skip
    assert list(found) == ["a", "b", "c", "d", "e"]
    a = sources.settings_of(*found["a"])
    assert (a["beta"].default, a["extra"].default, a["shift"].default, a["shift"].low) == (0.25, 0.5, -1.0, -2)
    assert (a["shift"].help, a["reset"].default) == ("a shift", "hard")
    assert "imp_init" not in a and sources.settings_of(*found["b"]) == NEURONS["lif"].settings
    assert sources.settings_of(*found["c"]) == a | {"gain": Setting(0.5, "share", low=0, high=1)}
    for name in "de":
        with pytest.raises(sources.Unread):
            sources.settings_of(*found[name])
    assert source(tmp_path, "def") == {} or sources.declared(tmp_path / "none.py", "register") == {}


def test_what_a_source_does_not_say_plainly_its_class_does(monkeypatch):
    registry = Registry("neuron", "neuron", "snn_repro.neurons")
    monkeypatch.setitem(registry._declared, "lif", (sources.Source(Path(__file__)), "no_such_name"))
    monkeypatch.setattr(registry, "_load", lambda: dict.update(registry, lif=NEURONS["lif"]))
    assert registry.settings("lif") == NEURONS["lif"].settings
    assert registry.checked("lif", {"tau": 3})["tau"] == 3.0


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
