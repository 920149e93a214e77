"""Operations and energy of one inference, by spikingjelly's counters and by NeuroBench's rules.

`energy_report` counts one batch. A convolution or linear layer with binary input costs one accumulation (AC) for each
spike and each weight it meets: a synaptic operation. Any other input (pixels, event counts, sums of a SEW block,
averages of a pool) costs multiply-accumulates (MAC). Counts that represent several spikes in inference
(`Neuron.max_count` above 1), alone or times one layer's `Neuron.scale`, cost one AC for each of these spikes. Constants: 45 nm, 32-bit floating point (Horowitz,
ISSCC 2014). Norm layers are not counted, since they fold into the convolution before them.

`neurobench` counts batch by batch over a test set, without the package. Its keys and rules are those of NeuroBench 2.3
(Yik et al., Nature Communications 2025, arXiv:2304.04640):

    Footprint                 bytes of parameters and buffers
    ParameterCount            parameters
    ConnectionSparsity        share of zeros in the weights of convolutions and linear layers, four decimals
    ActivationSparsity        share of zeros in the outputs of neurons and activations
    ActivationSparsityByLayer the same by layer; named by the last part of the name; equal names are summed
    SynapticOperations        per sample: nonzero inputs times the nonzero weights they meet, without bias and padding.
                              A call of a layer counts as accumulations (Effective_ACs) if all its inputs are -1, 0 or
                              1, else entirely as multiply-accumulates (Effective_MACs); Dense counts zeros too
    ClassificationAccuracy    at the loss's readout

One SEW sum or average pool makes the whole batch count as multiply-accumulates, so the split depends on the batch size.
Not counted: operations between activations, as in attention, and membrane updates except for snnTorch's neurons.
Numbers are exact; the package sums in float32, which is inexact above 2^24 in one call.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.neurons import Neuron, initial_states

E_MAC_PJ, E_AC_PJ = 4.6, 0.9
E_MEMORY_PJ_PER_BYTE = 24.96  # spikingjelly's default: 3.12 pJ a bit
CONNECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ACTIVATIONS = (Neuron, nn.ReLU, nn.Sigmoid)


def energy_report(model: nn.Module, batch: Tensor) -> dict[str, Any]:
    """Count operations and energy per sample of `batch`, run once in evaluation mode.

    batch: static images [B, C, H, W] or frames [T, B, C, H, W]. The model's mode is restored. Returns plain numbers:
        synops, macs        accumulations driven by spikes; multiply-accumulates
        energy_pj           E_MAC * macs + E_AC * synops, the usual estimate; no memory, no neuron arithmetic
        layers              {layer: {"macs", "synops"}} of convolutions and linear layers
        with_memory_pj      spikingjelly's simple model, with norm layers, neuron arithmetic and memory traffic;
                            counts of more than one spike are multiplied there
        imp                 {"parameters", "bytes", "read_pj"}: stored IMP, and the energy of reading it once per sample
        constants_pj        the constants used
    """
    from spikingjelly.activation_based import op_counter  # takes seconds to import

    norms = [nn.modules.batchnorm._BatchNorm]
    synop, mac = op_counter.SynOpCounter(extra_ignore_modules=norms), op_counter.MACCounter(extra_ignore_modules=norms)
    most = max((m.max_count for m in model.modules() if isinstance(m, Neuron)), default=1)
    with torch.no_grad():
        scales = {float(m.scale) for m in model.modules() if isinstance(m, Neuron)}
    if most > 1:
        for counter in (synop, mac):
            counter.rules = {op: _by_spike(rule, most, scales, batch) for op, rule in counter.rules.items()}
    cost = op_counter.SimpleEnergyCostConfig(E_MAC_PJ, E_AC_PJ, E_MEMORY_PJ_PER_BYTE)
    config = op_counter.SimpleEnergyConfig(cost_config=cost)
    with ExitStack() as stack, door.off(model), torch.no_grad():  # fused layers hide operations from the counters
        stack.callback(model.train, model.training)
        model.eval()
        with op_counter.DispatchCounterMode([synop, mac]):
            model(batch)
        simple = op_counter.estimate_simple_energy(model, batch, config=config)

    samples, root = batch.shape[-4], type(model).__name__
    synops, macs = synop.get_total() / samples, mac.get_total() / samples
    counts = {"macs": mac.get_counts(), "synops": synop.get_counts()}
    layers = {
        name: {kind: sum(of.get(f"{root}.{name}", {}).values()) / samples for kind, of in counts.items()}
        for name, module in model.named_modules() if isinstance(module, CONNECTIONS)
    }  # fmt: skip
    imps = list(initial_states(model).values())
    imp_bytes = sum(p.numel() * p.element_size() for p in imps)
    return dict(
        samples=samples, synops=synops, macs=macs, energy_pj=E_MAC_PJ * macs + E_AC_PJ * synops,
        layers=layers, with_memory_pj=simple.energy_total_pj / samples,
        imp=dict(parameters=sum(p.numel() for p in imps), bytes=imp_bytes, read_pj=E_MEMORY_PJ_PER_BYTE * imp_bytes),
        constants_pj=dict(mac=E_MAC_PJ, ac=E_AC_PJ, memory_byte=E_MEMORY_PJ_PER_BYTE),
    )  # fmt: skip


def _by_spike(rule: Callable, most: int, scales: set[float], batch: Tensor) -> Callable:
    """Wrap a counter's rule: counts 0..most (not in `batch` itself) times a scale cost one per spike."""
    raw = batch.untyped_storage().data_ptr()

    def count(args, kwargs, out):
        for i, x in enumerate(args):
            if not isinstance(x, Tensor) or x.dim() < 2 or x.untyped_storage().data_ptr() == raw:
                continue
            for scale in scales:
                n = (x / scale).round()
                if 0 < n.max() <= most and bool(((x >= 0) & (x == scale * n)).all()):
                    ones = ((n > k).to(x.dtype) for k in range(int(n.max())))
                    return sum(rule((*args[:i], one, *args[i + 1 :]), kwargs, out) for one in ones)
        return rule(args, kwargs, out)

    return count


def neurobench(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    readout: Callable[[Tensor], Tensor],
    device: torch.device,
) -> dict[str, Any]:
    """NeuroBench's metrics of `model` over batches of (images or frames, labels [B]).

    Inputs are [B, C, H, W] or [T, B, C, H, W]; readout: logits [T, B, K] -> [B, K]. Runs in evaluation mode; the
    model's mode is restored. Raises UserError for layers that NeuroBench does not count.
    """
    operations = dict.fromkeys(("Effective_MACs", "Effective_ACs", "Dense"), 0)
    silent, outputs = Counter[str](), Counter[str]()
    correct = n = 0

    def connection(layer: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach()
        kind = "Effective_ACs" if bool(((x == 0) | (x.abs() == 1)).all()) else "Effective_MACs"
        operations[kind] += int(nonzero_products(layer, x != 0, layer.weight != 0).sum())
        dense = nonzero_products(layer, torch.ones_like(x[:1]), torch.ones_like(layer.weight))
        operations["Dense"] += len(x) * int(dense.sum())

    def activation(name: str, layer: nn.Module, args: Any, out: Tensor) -> None:
        silent[name] += out.numel() - int(out.count_nonzero())
        outputs[name] += out.numel()

    with ExitStack() as stack, torch.inference_mode():
        stack.callback(model.train, model.training)
        model.eval()
        for name, module in model.named_modules():
            if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.modules.conv._ConvTransposeNd | nn.Bilinear):
                raise UserError(
                    f"NeuroBench's operations of {name} ({type(module).__name__}) are not supported; leave neurobench out"
                )
            if isinstance(module, CONNECTIONS):
                stack.enter_context(module.register_forward_pre_hook(connection))
            elif isinstance(module, ACTIVATIONS):
                stack.enter_context(module.register_forward_hook(partial(activation, name.rpartition(".")[2])))
        for x, target in batches:
            x, target = x.to(device), target.to(device)
            correct += int((readout(model(x).float()).argmax(-1) == target).sum())
            n += len(target)
    weights: list[Any] = [module.weight for module in model.modules() if isinstance(module, CONNECTIONS)]
    zeros, every = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    return dict(
        Footprint=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        ParameterCount=sum(p.numel() for p in model.parameters()),
        ConnectionSparsity=round(zeros / every, 4),
        ActivationSparsity=silent.total() / outputs.total() if outputs else 0.0,
        ActivationSparsityByLayer={name: silent[name] / total for name, total in outputs.items()},
        SynapticOperations={kind: count / n for kind, count in operations.items()},
        ClassificationAccuracy=correct / n,
    )  # fmt: skip


def nonzero_products(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Products of nonzeros of x [N, ...] and a layer's weight, for each output.

    x and weight: 1 where not zero. Returns float64, of the layer's output shape.
    """
    x, weight = x.double(), weight.double()
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight)
    torchs: Any = next(kind for kind in CONNECTIONS if isinstance(layer, kind))  # not a subclass's kernel
    return torchs._conv_forward(layer, x, weight, None)
