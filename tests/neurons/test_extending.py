"""What a class of one's own may rely on: a kernel stands for no other equation, a name is given once."""

import pytest
import torch

from snn_repro.errors import UserError
from snn_repro.neurons import NEURONS, SURROGATES, build_neuron, register, register_surrogate
from snn_repro.neurons.lif import LIF


def test_a_kernel_stands_for_the_class_that_names_it(monkeypatch):
    """Who changes a step has no kernel until it names one again, so the fast path never computes something else."""

    class Other(LIF):
        def charge(self, v, x):
            return v + 2 * x

    class Resets(LIF):
        def reset_potential(self, h, s):
            return h - 0.5 * s

    class Named(Other):
        def kernel(self):
            return "lif", self.tau

    class Mixin:
        def fire(self, h):
            return (h > 0.3).float()

    class Mixed(Mixin, LIF):
        pass

    class Same(LIF):
        """Another name alone."""

    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    for cls, fast in ((Other, False), (Resets, False), (Named, True), (Mixed, False), (Same, True)):
        layer = cls(tau=2.0, decay_input=True)
        assert layer.plan(x).backend == ("cpu" if fast else "torch"), cls
        if cls is not Named:
            assert torch.equal(layer(x), layer.steps(x, None)[0])
    learned = build_neuron("lif")
    learned.v_threshold = torch.nn.Parameter(torch.tensor(0.8))
    learned(x).sum().backward()
    assert learned.v_threshold.grad is not None
    other = build_neuron("if")
    monkeypatch.setitem(SURROGATES, "atan", SURROGATES["atan"]._replace(kernel=None))
    assert other.plan(x).backend == "torch"


def test_a_name_is_given_once():
    with pytest.raises(
        UserError, match="the neuron 'lif' already exists in snn_repro.neurons.lif.LIF; choose another name"
    ):

        @register("lif")
        class Mine(LIF):
            pass

    assert LIF.family == "lif" and NEURONS["lif"] is LIF
    with pytest.raises(UserError, match="the surrogate 'atan' already exists in"):
        register_surrogate("atan", width=1.0)(lambda z, width: z)
    with pytest.raises(UserError, match="suffix _imp selects a learned initial potential"):
        register("my_imp")
