"""NeuroBench's metrics of a network, counted batch by batch over a test set, without the package.

Keys and rules are those of NeuroBench 2.3 (Yik et al., Nature Communications 2025, arXiv:2304.04640):

    Footprint                 bytes of parameters and buffers
    ParameterCount            parameters
    ConnectionSparsity        share of zeros among the weights of convolutions and linear layers, four decimals
    ActivationSparsity        share of zeros among the outputs of neurons and activations
    ActivationSparsityByLayer the same by layer; as there, a layer goes by the last part of its name, and equal ones are added up
    SynapticOperations        a sample: nonzero inputs times the nonzero weights that they meet, neither bias nor padding.
                              A call of a layer counts as accumulations (Effective_ACs) if all its inputs are -1, 0 or 1, else all of
                              it as multiply-accumulates (Effective_MACs); Dense counts zeros too
    ClassificationAccuracy    at the loss's readout

So a SEW sum or an average pool makes multiply-accumulates of a whole batch: the split depends on the size of batches. Operations
between activations, as in attention, are not counted there, nor membrane updates but for snnTorch's neurons. Numbers are whole:
the package adds up in float32, which is inexact above 2^24 in one call.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.neurons import Neuron

CONNECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ACTIVATIONS = (Neuron, nn.ReLU, nn.Sigmoid)


class Connections:
    """Counts what one convolution or linear layer does; a forward pre-hook of it."""

    def __init__(self) -> None:
        self.macs = self.acs = self.dense = 0

    def __call__(self, layer: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        operations = meetings(layer, x != 0, layer.weight != 0)
        if bool(((x == 0) | (x.abs() == 1)).all()):
            self.acs += operations
        else:
            self.macs += operations
        self.dense += len(x) * meetings(layer, torch.ones_like(x[:1]), torch.ones_like(layer.weight))


def meetings(layer: nn.Module, x: Tensor, weight: Tensor) -> int:
    """How many ones of x [N, ...] and of a layer's weight meet, over all outputs: the sum of the outputs of that layer."""
    x, weight = x.double(), weight.double()
    if isinstance(layer, nn.Linear):
        return int(nn.functional.linear(x, weight).sum())
    plain: Any = next(kind for kind in CONNECTIONS if isinstance(layer, kind))  # no kernel of a class below it
    return int(plain._conv_forward(layer, x, weight, None).sum())


def neurobench(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    readout: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, Any]:
    """The metrics of `model` over batches of (static images [B, C, H, W] or frames [T, B, C, H, W], labels [B]).

    readout: logits [T, B, K] -> [B, K]. The model is run as it is but in evaluation mode, and left in the mode it was in. Raises
    UserError where it has layers that NeuroBench does not count.
    """
    neurons: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # outputs that are zero, and all
    hooks, counts, training = [], dict[str, Connections](), model.training
    correct = n = 0

    def silent(name: str, layer: nn.Module, args: Any, out: Tensor) -> None:
        neurons[name][0] += out.numel() - int(out.count_nonzero())
        neurons[name][1] += out.numel()

    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.modules.conv._ConvTransposeNd | nn.Bilinear):
            raise UserError(
                f"NeuroBench's operations of {name} ({type(module).__name__}) are not counted here; leave neurobench out"
            )
        if isinstance(module, CONNECTIONS):
            counts[name] = Connections()
            hooks.append(module.register_forward_pre_hook(counts[name]))
        elif isinstance(module, ACTIVATIONS):
            hooks.append(module.register_forward_hook(partial(silent, name.rpartition(".")[2])))
    model.eval()
    try:
        with torch.inference_mode():
            for x, target in batches:
                x, target = x.to(device), target.to(device)
                correct += int((readout(model(x).float()).argmax(-1) == target).sum())
                n += len(target)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)

    weights: list[Any] = [module.weight for module in model.modules() if isinstance(module, CONNECTIONS)]
    zeros, every = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    still, outputs = sum(zero for zero, _ in neurons.values()), sum(total for _, total in neurons.values())
    operations = dict(Effective_MACs="macs", Effective_ACs="acs", Dense="dense")
    return dict(
        Footprint=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        ParameterCount=sum(p.numel() for p in model.parameters()),
        ConnectionSparsity=round(zeros / every, 4),
        ActivationSparsity=still / outputs if outputs else 0.0,
        ActivationSparsityByLayer={name: zero / total for name, (zero, total) in neurons.items()},
        SynapticOperations={key: sum(getattr(c, of) for c in counts.values()) / n for key, of in operations.items()},
        ClassificationAccuracy=correct / n,
    )  # fmt: skip
