"""Synaptic operations and energy of one inference, and what the learned initial potentials cost in memory.

Counted by spikingjelly's operation counters on a real batch. A convolution or linear layer whose input is binary costs
one accumulation (AC) for each spike and each weight it meets: a synaptic operation. Any other input (pixels, event
counts, sums of a SEW block, averages of a pool) costs its multiply-accumulates (MAC). Where neurons emit counts that stand for
as many spikes in inference (`Neuron.max_count` above 1), an input of such counts costs one AC for each of these spikes. Constants: 45 nm, 32-bit floating
point (Horowitz, ISSCC 2014). Norm layers are left out, since they fold into the convolution before them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_repro.kernels import door
from snn_repro.neurons import Neuron, initial_states

E_MAC_PJ = 4.6
E_AC_PJ = 0.9
E_MEMORY_PJ_PER_BYTE = 24.96  # spikingjelly's default: 3.12 pJ a bit


def energy_report(model: nn.Module, batch: Tensor) -> dict[str, Any]:
    """Run `batch` (static images [B, C, H, W] or frames [T, B, C, H, W]) once in evaluation mode and count.

    Returns plain numbers, operations and energy per sample:
        synops, macs        accumulations driven by spikes; multiply-accumulates
        energy_pj           E_MAC * macs + E_AC * synops, the field's usual estimate; no memory, no neuron arithmetic
        layers              {layer: {"macs", "synops"}} of convolutions and linear layers
        with_memory_pj      spikingjelly's simple model: adds norm layers, neuron arithmetic and memory traffic; counts of
                            more than one spike are multiplied there
        imp                 {"parameters", "bytes", "read_pj"}: stored IMP, and the energy of reading it once a sample
        constants_pj        the constants used
    The model is left in the mode it was in.
    """
    from spikingjelly.activation_based import op_counter  # takes seconds to import

    norms = [nn.modules.batchnorm._BatchNorm]
    synop, mac = op_counter.SynOpCounter(extra_ignore_modules=norms), op_counter.MACCounter(extra_ignore_modules=norms)
    most = max((m.max_count for m in model.modules() if isinstance(m, Neuron)), default=1)
    if most > 1:
        for counter in (synop, mac):
            counter.rules = {op: _by_spike(rule, most, batch) for op, rule in counter.rules.items()}
    cost = op_counter.SimpleEnergyCostConfig(
        e_mac_pj=E_MAC_PJ, e_ac_pj=E_AC_PJ, e_memory_pj_per_byte=E_MEMORY_PJ_PER_BYTE
    )
    training = model.training
    model.eval()
    try:
        with door.off(model):  # fused layers hide their operations from the counters
            with torch.no_grad(), op_counter.DispatchCounterMode([synop, mac]):
                model(batch)
            config = op_counter.SimpleEnergyConfig(cost_config=cost)
            simple = op_counter.estimate_simple_energy(model, batch, config=config)
    finally:
        model.train(training)

    samples, root = batch.shape[-4], type(model).__name__
    synops, macs = synop.get_total() / samples, mac.get_total() / samples
    counts = {"macs": mac.get_counts(), "synops": synop.get_counts()}
    counted = [name for name, module in model.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    layers = {
        name: {kind: sum(of.get(f"{root}.{name}", {}).values()) / samples for kind, of in counts.items()}
        for name in counted
    }
    imps = list(initial_states(model).values())
    imp_bytes = sum(p.numel() * p.element_size() for p in imps)
    return dict(
        samples=samples, synops=synops, macs=macs, energy_pj=E_MAC_PJ * macs + E_AC_PJ * synops,
        layers=layers, with_memory_pj=simple.energy_total_pj / samples,
        imp=dict(parameters=sum(p.numel() for p in imps), bytes=imp_bytes, read_pj=E_MEMORY_PJ_PER_BYTE * imp_bytes),
        constants_pj=dict(mac=E_MAC_PJ, ac=E_AC_PJ, memory_byte=E_MEMORY_PJ_PER_BYTE),
    )  # fmt: skip


def _by_spike(rule: Callable, most: int, batch: Tensor) -> Callable:
    """A counter's rule that takes an input of counts 0..most, but for the batch itself, as one input for each spike."""
    raw = batch.untyped_storage().data_ptr()

    def count(args, kwargs, out):
        for i, x in enumerate(args[:3]):
            if not isinstance(x, Tensor) or x.dim() < 2 or x.untyped_storage().data_ptr() == raw:
                continue
            if 1 < x.max() <= most and bool(((x >= 0) & (x == x.round())).all()):
                levels = range(1, int(x.max()) + 1)
                return sum(rule((*args[:i], (x >= n).to(x.dtype), *args[i + 1 :]), kwargs, out) for n in levels)
        return rule(args, kwargs, out)

    return count
