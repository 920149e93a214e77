"""Norms of other papers: hand-computed numbers, float64 references, gradients, what networks do with them."""

import math

import pytest
import torch
from torch import nn

from snn_repro.errors import UserError
from snn_repro.models import NORMS, build_model
from snn_repro.models.blocks import Neurons
from snn_repro.models.norms import norms
from snn_repro.optim import parameter_kind


def test_tab_is_its_equation():
    torch.manual_seed(0)
    norm, x = NORMS["tab"](3, 4).double(), torch.randn(4, 5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)

    def plain(x):
        steps = []
        for t, bn in enumerate(norm.bn):
            seen = x[: t + 1].transpose(0, 2).flatten(1)  # [C, ...]
            mean, var = (v.view(-1, 1, 1) for v in (seen.mean(1), seen.var(1, unbiased=False)))
            y = (x[t] - mean) / (var + bn.eps).sqrt() * bn.weight.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)
            steps.append(norm.p[t] ** 2 * y)
        return torch.stack(steps)

    torch.testing.assert_close(norm(x), plain(x))
    assert torch.autograd.gradcheck(norm, x)
    alone = torch.randn(1, 5, 3, 2, 2, dtype=torch.float64)  # a static image stands for all steps
    torch.testing.assert_close(norm(alone), norm(alone.expand(4, -1, -1, -1, -1)), rtol=0, atol=0)


def test_tdbn_starts_from_the_threshold():
    x = torch.randn(3, 4, 2, 5, 5, dtype=torch.float64) * 3 + 1
    for neuron, summands, factor in (
        ({"name": "if"}, 1, 1.0),
        ({"name": "lif", "v_threshold": 0.5}, 1, 0.5),
        ({"name": "if_imp", "v_threshold": 0.5}, 2, 0.5 / math.sqrt(2)),
        ({"name": "if", "v_threshold": None}, 2, 1 / math.sqrt(2)),
    ):
        y = norms("tdbn", 3, Neurons(neuron, True))(2, summands=summands).double()(x)
        mean, var = x.mean((0, 1, 3, 4), keepdim=True), x.var((0, 1, 3, 4), unbiased=False, keepdim=True)
        torch.testing.assert_close(y, factor * (x - mean) / (var + 1e-5).sqrt())
    assert torch.equal(norms("bn", 3, Neurons({"name": "if", "v_threshold": 0.5}, True))(2).weight, torch.ones(2))
    with pytest.raises(UserError, match="neuron.v_threshold=0.0 must be above 0"):
        norms("tdbn", 3, Neurons({"name": "if", "v_threshold": 0}, True))(2)


NETWORKS = {"small": (1, 8, 8), "sew_resnet18_cifar": (3, 8, 8), "vgg128": (2, 16, 16)}


def network(name, norm, **options):
    torch.manual_seed(0)
    neuron = {"name": "if", "imp": True}
    return build_model(
        name, num_classes=5, input_shape=NETWORKS[name], timesteps=2, neuron=neuron, norm=norm, **options
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_every_norm(name, norm):
    model = network(name, norm)
    frames = torch.rand(2, 2, *NETWORKS[name]) * 2
    model(frames).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert any(type(m) is NORMS[norm] for m in model.modules())
    if norm == "bn":
        assert model.state_dict().keys() == network(name, "bn").state_dict().keys()
    if NORMS[norm].wired:
        assert model(frames[0]).shape == (2, 2, 5)
        with pytest.raises(UserError, match="built for timesteps=2, but its frames have 3 time steps.*model.norm=bn"):
            model(torch.rand(3, 2, *NETWORKS[name]))


def test_a_zero_start_is_of_every_weight_of_the_norm():
    for norm in ("bn", "tdbn", "tab"):
        block = network("sew_resnet18_cifar", norm, zero_init_residual=True).layer1[0]
        weights = [p for n, p in block.bn2.named_parameters() if n.endswith("weight")]
        assert weights and not any(w.any() for w in weights) and any(p.any() for p in block.bn1.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_checkpointing_changes_no_number_and_parameters_are_of_their_kind(norm):
    found, x = [], torch.rand(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    for how in ("off", "norms", "blocks"):
        model = network("small", norm, checkpointing=how).double()
        model(x).square().sum().backward()
        found.append([*(p.grad for p in model.parameters()), *model.state_dict().values()])
        torch.testing.assert_close(found[-1], found[0], rtol=1e-9, atol=1e-9)
    kinds = {name: parameter_kind(model.bn1, name) for name, _ in model.bn1.named_parameters(recurse=False)}
    assert all(kind == ("te" if name in ("te", "p") else "norm") for name, kind in kinds.items())
