"""Relevance propagation through a spiking network: how much each event counts for what the network says.

Layer-wise relevance propagation hands what a unit counts for on to the units before it, in proportion to what each
contributed, from the logits down to the input. Two rules for spiking networks (EventRPG: Sun et al., ICLR 2024,
arXiv:2403.09274):

    sltrp  at every time step; what a potential h[t] counts for is split between the input x[t] and the potential v[t-1]
           that was kept, whose part goes on to step t-1
    slrp   of the means over time: every time step has the same, and time steps fewer convolutions run

Both take positive contributions alone (alpha = 1): through a convolution or linear layer with weights w,
R_i = sum_j R_j (x_i w_ij)+ / sum_k (x_k w_kj)+. Sums go by positive parts too, norms hand it on
as it is. What finds no positive contribution is lost, and
what comes down to an initial potential counts for the input of that step. The logits start with 1 - 1/K at the class and
-1/K at the others.

All between these layers (sums of spikes, pools, means over pixels, reshapes) is linear, where relevance per unit of
activation, R / activation, is what flows backwards as a gradient does. So the whole is one forward pass, and one backward
pass in which layers with a rule have it in the place of the gradient. On two networks here it cost 1.5 training steps (slrp),
2 to 4 with sltrp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snn_repro import kernels
from snn_repro.errors import UserError
from snn_repro.models.blocks import Block
from snn_repro.models.norms import NORMS
from snn_repro.neurons import Neuron

# What may happen to activations between the layers with a rule, by torch's names: it passes R / activation on rightly.
LINEAR = {
    "add", "__add__", "__radd__", "add_", "__iadd__", "sum", "mean", "stack", "cat", "concat",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "max_pool2d", "boolean_dispatch",
    "dropout", "clone", "contiguous", "to", "float", "flatten", "unflatten", "reshape", "view", "expand", "repeat",
    "permute", "transpose", "movedim", "squeeze", "unsqueeze", "narrow", "__getitem__",
    "unbind", "split", "chunk", "tensor_split",
}  # fmt: skip
SCALED = {"mul", "__mul__", "__rmul__", "div", "__truediv__"}  # by what is no activation


class _Tie(torch.autograd.Function):
    """An output that was computed apart, tied to its input by a rule in the place of the derivative."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.rule = rule
        return y.view_as(y)

    @staticmethod
    def backward(ctx, per_output: Tensor):
        return ctx.rule(per_output), None, None


class _Sum(torch.autograd.Function):
    """a + b, of which both have their part by the positive values alone; where none is negative that is the derivative's."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, steps: torch.Size, mean: bool) -> Tensor:
        ctx.parts, ctx.steps, ctx.mean = (a.detach(), b.detach()), steps, mean
        return a + b

    @staticmethod
    def backward(ctx, per_output: Tensor):
        of = (lambda x: _over_time(x, ctx.steps)) if ctx.mean else (lambda x: x)
        positive = [of(part.clamp(min=0)) for part in ctx.parts]
        share = _divided(of(per_output) * of(ctx.parts[0] + ctx.parts[1]), positive[0] + positive[1])
        found = [_divided(p * share, of(part)) for p, part in zip(positive, ctx.parts, strict=True)]
        return *(_spread(f, per_output, ctx.steps) if ctx.mean else f for f in found), None, None


class _Watch(TorchFunctionMode):
    """Notices what happens between the layers with a rule, and the last feature maps [T, B, C, H, W]."""

    def __init__(self, steps: torch.Size, mean: bool):
        self.inside, self.steps, self.mean = 0, steps, mean
        self.features: Tensor | None = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        if self.inside or not any(isinstance(v, Tensor) and v.requires_grad for v in results):
            return result
        name = getattr(function, "__name__", "")
        activations = [v for v in args if isinstance(v, Tensor) and v.requires_grad and not isinstance(v, nn.Parameter)]
        if name not in LINEAR and not (name in SCALED and len(activations) == 1):
            raise UserError(f"the network computes '{name}' between its layers")
        if "add" in name:
            if len(activations) == 2 and activations[0].shape == activations[1].shape:
                if any((part < 0).any() for part in activations):
                    result = _Sum.apply(*activations, self.steps, self.mean)
            self.features = result if result.dim() == 5 else self.features
        return result


def relevance(
    model: nn.Module, frames: Tensor, labels: Tensor | None = None, rule: str = "slrp"
) -> tuple[Tensor, Tensor]:
    """What the parts of frames [T, B, C, H, W] count for each sample's class: the label, or without labels the one that is
    predicted from the mean output.

    Returns (relevance of the input, that of the last feature maps [T, B, C', H', W'] before the classifier), with slrp both
    the same at each time step and together the relevance of the mean. The network runs in evaluation mode, in the precision
    of its weights, and is left as it was. Raises UserError for a network whose layers have no rule.
    """
    training = model.training
    model.eval()
    try:
        x = frames.detach().requires_grad_()
        with _ruled(model, frames, rule) as watch:
            logits = model.forward(x)
            features = watch.features
        if features is None:
            raise UserError("the network has no feature maps [T, B, C, H, W]")
        start = torch.full_like(logits, -1 / logits.shape[-1])
        labels = logits.mean(0).argmax(1) if labels is None else labels
        start[:, torch.arange(len(labels), device=start.device), labels] += 1
        per_logit = _divided(start, logits.detach() if rule == "sltrp" else logits.detach().mean(0).expand_as(logits))
        per_input, per_feature = torch.autograd.grad(logits, (x, features), per_logit)
    finally:
        model.train(training)
    found = frames * per_input, features.detach() * per_feature
    of_input, of_features = found if rule == "sltrp" else (r.mean(0).expand_as(r) for r in found)
    return of_input, of_features


def guide(model: nn.Module, device: torch.device, parts: int = 1) -> Callable[[Tensor, str], tuple[Tensor, Tensor]]:
    """What batches ask (`guide` of batches.py): `relevance` of frames by a rule, with the weights as they are when it asks.

    parts: so many shares of the frames' samples run one after the other.
    """

    def of(frames: Tensor, rule: str) -> tuple[Tensor, Tensor]:
        shares = frames.tensor_split(min(parts, frames.shape[1]), dim=1)
        found = [relevance(model, share.to(device), rule=rule) for share in shares]
        of_input, of_features = (torch.cat(r, dim=1).to(frames.device) for r in zip(*found, strict=True))
        return of_input, of_features

    return of


def check(model: nn.Module, input_shape: tuple[int, int, int], timesteps: int, rule: str, key: str) -> None:
    """Raise UserError, naming the key that asks for it, where no relevance can be computed through this network."""
    weight = next(model.parameters())
    probe = torch.rand(timesteps, 2, *input_shape, generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        relevance(model, probe, rule=rule)
    except UserError as error:
        raise UserError(
            f"augment.{key} needs relevance propagated through the network, which cannot be done here: {error}; choose"
            " another network or neuron, or leave it out"
        ) from None


@contextmanager
def _ruled(model: nn.Module, frames: Tensor, rule: str) -> Iterator[_Watch]:
    """Within, the layers of `model` have the rule in the place of their derivatives."""
    steps, mean = frames.shape[:2], rule == "slrp"
    watch = _Watch(steps, mean)
    ruled: dict[Any, Callable] = {}
    for name, module in model.named_modules():
        if isinstance(module, Neuron):
            _check_neuron(module, name)
            ruled[module] = _mean_neuron if mean else _neuron
        elif isinstance(module, nn.Linear | nn.Conv2d):
            ruled[module] = _mean_weights if mean else _weights
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, *NORMS.values())):
            ruled[module] = _mean_norm if mean else _norm

    def forward(module: nn.Module, rule_of: Callable, compute: Callable) -> Callable:
        def run(x: Tensor) -> Tensor:
            watch.inside += 1
            try:
                with torch.no_grad():
                    y = compute(x)
                result = _Tie.apply(x, y, rule_of(module, x.detach(), y, steps))
            finally:
                watch.inside -= 1
            if isinstance(module, Neuron) and result.dim() == 5:
                watch.features = result
            return result

        return run

    with ExitStack() as stack, torch.enable_grad(), kernels.off(model):
        for block in (m for m in model.modules() if isinstance(m, Block)):
            stack.callback(setattr, block, "checkpointing", block.checkpointing)
            block.checkpointing = "off"  # it would run layers again, without their rules
        for module, rule_of in ruled.items():
            if isinstance(module, Neuron):
                stack.callback(setattr, module, "store_v_seq", module.store_v_seq)
                module.store_v_seq = True
            module.forward = forward(module, rule_of, module.forward)
            stack.callback(delattr, module, "forward")
        stack.enter_context(watch)
        stack.enter_context(torch.autocast(frames.device.type, enabled=False))
        yield watch


def _check_neuron(neuron: Neuron, name: str) -> None:
    whole = type(neuron).steps is Neuron.steps and type(neuron).begin is Neuron.begin
    if whole:
        v, x, nothing = torch.tensor([0.3, -0.7]), torch.tensor([-0.2, 1.1]), torch.zeros(2)
        try:
            with torch.no_grad():
                v, x, nothing = (part.to(next(neuron.parameters(), part)) for part in (v, x, nothing))
                parts = neuron.charge(v, nothing) + neuron.charge(nothing, x)
                whole = torch.allclose(neuron.charge(v, x), parts, atol=1e-6)
        except (RuntimeError, ValueError, AttributeError, TypeError):  # its charge asks for more than v and x
            whole = False
    if not whole:
        raise UserError(f"the neuron '{neuron.family}' ({name}) does not just add up what it keeps and what comes in")


# ---------------------------------------------------------------- rules: R / output -> R / input


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is (as good as) 0."""
    small = b.abs() < 1e-12
    return torch.where(small, 0, a / torch.where(small, 1, b))


def _weights(layer: nn.Module, x: Tensor, y: Tensor, steps) -> Callable[[Tensor], Tensor]:
    return lambda per_output: _through_weights(layer, x, x.clamp(min=0), x.clamp(max=0), per_output * y)


def _through_weights(layer: Any, x: Tensor, above: Tensor, below: Tensor, R: Tensor) -> Tensor:
    """R [..] of a layer's outputs -> per input of positive values `above` and negative ones `below`."""

    def contributions(values: Tensor, weight: Tensor) -> Tensor:
        if isinstance(layer, nn.Linear):
            return F.linear(values, weight)
        return F.conv2d(values, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    both = [(above, layer.weight.detach().clamp(min=0))]
    if below.any():
        both.append((below, layer.weight.detach().clamp(max=0)))
    with torch.enable_grad():
        both = [(values.detach().requires_grad_(), weight) for values, weight in both]
        total = torch.as_tensor(sum(contributions(values, weight) for values, weight in both))
        found = torch.autograd.grad(total, [values for values, _ in both], _divided(R, total.detach()))
    if len(found) == 1:
        return found[0]
    parts = (values.detach() * per_value for (values, _), per_value in zip(both, found, strict=True))
    return _divided(torch.as_tensor(sum(parts)), x)


def _norm(layer: nn.Module, x: Tensor, y: Tensor, steps) -> Callable[[Tensor], Tensor]:
    return lambda per_output: _divided(per_output * y, x)


def _neuron(neuron: Neuron, x: Tensor, y: Tensor, steps) -> Callable[[Tensor], Tensor]:
    """Step t's part of v[t-1] is what it adds to the positive part of h[t]; the first step's potential came from nowhere."""
    kept = neuron.v_seq

    def rule(per_output: Tensor) -> Tensor:
        R = per_output * y
        found, carried = torch.empty_like(R), torch.zeros_like(R[0])
        nothing = torch.zeros_like(R[0])
        for t in range(len(R) - 1, -1, -1):
            of_h = R[t] + carried
            if t:
                from_v = neuron.charge(kept[t - 1], nothing).clamp(min=0)
                part = _divided(from_v, from_v + neuron.charge(nothing, x[t]).clamp(min=0))
                carried, of_h = of_h * part, of_h * (1 - part)
            found[t] = of_h
        return _divided(found, x)

    return rule


# The same of means over time: of what flows backwards each step holds the same.


def _over_time(x: Tensor, steps) -> Tensor:
    """The mean over time [B, ...] of x [T, B, ...] or [T*B, ...]."""
    folded = len(x) == steps[0] * steps[1]
    return (x.unflatten(0, steps) if folded else x).mean(0)


def _spread(per_mean: Tensor, like: Tensor, steps) -> Tensor:
    """A value of the mean, at every step of a tensor [T, B, ...] or [T*B, ...]."""
    return per_mean.expand(steps[0], *per_mean.shape).reshape(like.shape)


def _mean_weights(layer: nn.Module, x: Tensor, y: Tensor, steps) -> Callable[[Tensor], Tensor]:
    def rule(per_output: Tensor) -> Tensor:
        R = _over_time(per_output, steps) * _over_time(y, steps)
        above, below = _over_time(x.clamp(min=0), steps), _over_time(x.clamp(max=0), steps)
        return _spread(_through_weights(layer, above + below, above, below, R), x, steps)

    return rule


def _mean_norm(layer: nn.Module, x: Tensor, y: Tensor, steps) -> Callable[[Tensor], Tensor]:
    def rule(per_output: Tensor) -> Tensor:
        R = _over_time(per_output, steps) * _over_time(y, steps)
        return _spread(_divided(R, _over_time(x, steps)), x, steps)

    return rule


_mean_neuron = _mean_norm
