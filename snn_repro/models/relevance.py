"""Relevance propagation: how much each event counts for the class that the network predicts.

Layer-wise relevance propagation distributes the relevance of a unit over its inputs, in proportion to what each contributed,
from the logits down to the input. Two rules for spiking networks (EventRPG: Sun et al., ICLR 2024, arXiv:2403.09274):

    sltrp  at every time step; the relevance of a potential h[t] is split between the input x[t] and the potential v[t-1]
           that was kept, whose part goes on to step t-1
    slrp   of the means over time: all time steps have the same, and fewer convolutions run

Both take positive contributions alone (alpha = 1): through a convolution or linear layer with weights w,
R_i = sum_j R_j (x_i w_ij)+ / sum_k (x_k w_kj)+. Sums are split by their positive parts too, norms pass it on unchanged.
Relevance without a positive contribution is lost, and that of an initial potential goes to the input of its step. The logits
start with 1 - 1/K at the class and -1/K at the others.

All between these layers (pools, means over pixels, reshapes) is linear, where R / activation flows backwards as a gradient
does. So the whole is one forward pass, and one backward pass in which layers with a rule have it in the place of the
gradient. On two networks here it cost 1.5 training steps (slrp), 2 to 4 with sltrp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.models.blocks import Block
from snn_repro.models.norms import NORMS
from snn_repro.neurons import Neuron

# What passes R / activation on unchanged between the layers with a rule, by torch's names.
LINEAR = {
    *"add __add__ __radd__ add_ __iadd__ sum mean stack cat concat dropout clone contiguous to float flatten".split(),
    *"avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d max_pool2d boolean_dispatch unflatten".split(),
    *"reshape view expand repeat permute transpose movedim squeeze unsqueeze narrow __getitem__ unbind".split(),
    *"split chunk tensor_split".split(),
}
SCALED = {"mul", "__mul__", "__rmul__", "div", "__truediv__"}  # by what is no activation


class _Ruled(torch.autograd.Function):
    """y, of which `rule` says in the place of the derivative what flows back to the inputs."""

    @staticmethod
    def forward(ctx, rule: Callable[[Tensor], tuple[Tensor, ...]], y: Tensor, *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        return y.view_as(y)

    @staticmethod
    def backward(ctx, per_output: Tensor):
        return None, None, *ctx.rule(per_output)


class _Rules(TorchFunctionMode):
    """The rules R / output -> R / input of layers and sums; keeps the last feature maps [T, B, C, H, W].

    steps is (T, B). With `mean` a rule is that of the means over time, and all steps get the same.
    """

    def __init__(self, steps: torch.Size, mean: bool):
        self.steps, self.mean = steps, mean
        self.features: Tensor | None = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        if not torch.is_grad_enabled() or not any(isinstance(v, Tensor) and v.requires_grad for v in results):
            return result  # within a layer, or no activation
        name = getattr(function, "__name__", "")
        activations = [v for v in args if isinstance(v, Tensor) and v.requires_grad and not isinstance(v, nn.Parameter)]
        if name not in LINEAR and not (name in SCALED and len(activations) == 1):
            raise UserError(f"the network computes '{name}' between its layers")
        if "add" in name:
            if len(activations) == 2 and activations[0].shape == activations[1].shape:
                if any((part < 0).any() for part in activations):
                    parts = [part.detach() for part in activations]
                    result = _Ruled.apply(lambda per_output: self.sum(parts, per_output), result.detach(), *activations)
            self.features = result if result.dim() == 5 else self.features
        return result

    def over_time(self, x: Tensor) -> Tensor:
        """x [T, B, ...] or [T*B, ...], or its mean over time [B, ...]."""
        if not self.mean:
            return x
        return (x.unflatten(0, self.steps) if len(x) == self.steps.numel() else x).mean(0)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """What `over_time` made of `like`, for every step again."""
        return values.expand(self.steps[0], *values.shape).reshape(like.shape) if self.mean else values

    def sum(self, parts: list[Tensor], per_output: Tensor) -> tuple[Tensor, ...]:
        positive = [self.over_time(part.clamp(min=0)) for part in parts]
        share = _divided(self.over_time(per_output) * self.over_time(parts[0] + parts[1]), positive[0] + positive[1])
        found = [_divided(p * share, self.over_time(part)) for p, part in zip(positive, parts, strict=True)]
        return tuple(self.spread(f, per_output) for f in found)

    def norm(self, layer: nn.Module, x: Tensor, y: Tensor, kept: Any, per_output: Tensor) -> Tensor:
        R = self.over_time(per_output) * self.over_time(y)
        return self.spread(_divided(R, self.over_time(x)), x)

    def weights(self, layer: Any, x: Tensor, y: Tensor, kept: Any, per_output: Tensor) -> Tensor:
        def contributions(values: Tensor, weight: Tensor) -> Tensor:
            if isinstance(layer, nn.Linear):
                return F.linear(values, weight)
            return F.conv2d(values, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

        R, weight = self.over_time(per_output) * self.over_time(y), layer.weight.detach()
        above, below = self.over_time(x.clamp(min=0)), self.over_time(x.clamp(max=0))
        signs = [(above, weight.clamp(min=0)), (below, weight.clamp(max=0))][: 1 + int(below.any())]
        with torch.enable_grad():
            total = torch.as_tensor(sum(contributions(values.requires_grad_(), weight) for values, weight in signs))
            found = torch.autograd.grad(total, [values for values, _ in signs], _divided(R, total.detach()))
        if len(found) == 1:
            return self.spread(found[0], x)
        parts = [values.detach() * per_value for (values, _), per_value in zip(signs, found, strict=True)]
        return self.spread(_divided(parts[0] + parts[1], (above + below).detach()), x)

    def neuron(self, neuron: Neuron, x: Tensor, y: Tensor, kept: Any, per_output: Tensor) -> Tensor:
        """Step t's part of v[t-1] is what it adds to the positive part of h[t]; the first has no step before it."""
        if self.mean:
            return self.norm(neuron, x, y, kept, per_output)
        R = per_output * y
        found, carried, nothing = torch.empty_like(R), torch.zeros_like(R[0]), torch.zeros_like(R[0])
        for t in range(len(R) - 1, -1, -1):
            of_h = R[t] + carried
            if t:
                from_v = neuron.charge(kept[t - 1], nothing).clamp(min=0)
                part = _divided(from_v, from_v + neuron.charge(nothing, x[t]).clamp(min=0))
                carried, of_h = of_h * part, of_h * (1 - part)
            found[t] = of_h
        return _divided(found, x)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is (as good as) 0."""
    small = b.abs() < 1e-12
    return torch.where(small, 0, a / torch.where(small, 1, b))


def relevance(model: nn.Module, frames: Tensor, rule: str = "slrp", parts: int = 1) -> tuple[Tensor, Tensor]:
    """Relevance of frames [T, B, C, H, W], and of the last feature maps [T, B, C', H', W'], to the class of the mean output.

    With slrp both are the same at each time step and together the relevance of the mean. The network runs in evaluation mode,
    in the precision of its weights, the samples in so many parts one after the other, and is left as it was. Raises
    UserError for a network whose layers have no rule.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        shares = frames.tensor_split(min(parts, frames.shape[1]), dim=1)
        found = [_relevance(model, share.to(device), rule == "slrp") for share in shares]
    finally:
        model.train(training)
    of_input, of_features = (torch.cat(r, dim=1).to(frames.device) for r in zip(*found, strict=True))
    return of_input, of_features


def _relevance(model: nn.Module, frames: Tensor, mean: bool) -> tuple[Tensor, ...]:
    x = frames.detach().requires_grad_()
    with _ruled(model, frames, mean) as rules:
        logits = model.forward(x)
    if rules.features is None:
        raise UserError("the network has no feature maps [T, B, C, H, W]")
    average = logits.detach().mean(0)
    start = torch.full_like(logits, -1 / logits.shape[-1])
    start[:, torch.arange(len(average), device=start.device), average.argmax(1)] += 1
    per_logit = _divided(start, average.expand_as(logits) if mean else logits.detach())
    per_input, per_feature = torch.autograd.grad(logits, (x, rules.features), per_logit)
    found = frames * per_input, rules.features.detach() * per_feature
    return tuple(r.mean(0).expand_as(r) for r in found) if mean else found


def check(model: nn.Module, shape: tuple[int, ...], rule: str, key: str) -> None:
    """Raise UserError, naming the key that asks for it, where frames of a shape [T, B, C, H, W] have no relevance."""
    probe = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()))
    try:
        relevance(model, probe, rule)
    except UserError as error:
        raise UserError(
            f"augment.{key} needs relevance propagated through the network, which cannot be done here: {error}; choose"
            " another network or neuron, or leave it out"
        ) from None


@contextmanager
def _ruled(model: nn.Module, frames: Tensor, mean: bool) -> Iterator[_Rules]:
    """Within, the layers of `model` have their rules in the place of their derivatives."""
    rules = _Rules(frames.shape[:2], mean)

    def ruled(module: nn.Module, rule: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        compute = module.forward

        def forward(x: Tensor, *_: Any) -> Tensor:  # a neuron is given its plan, here always PyTorch
            with torch.no_grad():
                y = compute(x)
            seen = module, x.detach(), y, getattr(module, "v_seq", None)
            result = _Ruled.apply(lambda per_output: (rule(*seen, per_output),), y, x)
            if isinstance(module, Neuron) and result.dim() == 5:
                rules.features = result
            return result

        return forward

    with ExitStack() as stack, torch.enable_grad(), door.off(model):
        for name, module in model.named_modules():
            if isinstance(module, Block):  # checkpointing would run layers again, without their rules
                stack.callback(setattr, module, "checkpointing", module.checkpointing)
                module.checkpointing = "off"
            if isinstance(module, Neuron):
                _check_neuron(module, name)
                stack.callback(setattr, module, "store_v_seq", module.store_v_seq)
                module.store_v_seq = True
                rule: Callable[..., Tensor] = rules.neuron
            elif isinstance(module, nn.Linear | nn.Conv2d):
                rule = rules.weights
            elif isinstance(module, (nn.modules.batchnorm._BatchNorm, *NORMS.values())):
                rule = rules.norm
            else:
                continue
            module.forward = ruled(module, rule)
            stack.callback(delattr, module, "forward")
        stack.enter_context(rules)
        stack.enter_context(torch.autocast(frames.device.type, enabled=False))
        yield rules


def _check_neuron(neuron: Neuron, name: str) -> None:
    """Raise UserError where a charge is not the sum of what the potential and the input contribute."""
    added = type(neuron).steps is Neuron.steps and type(neuron).begin is Neuron.begin
    if added:
        like = next(neuron.parameters(), torch.empty(0))
        v, x, nothing = torch.tensor([[0.3, -0.7], [-0.2, 1.1], [0, 0]]).to(like)
        try:
            with torch.no_grad():
                parts = neuron.charge(v, nothing) + neuron.charge(nothing, x)
                added = torch.allclose(neuron.charge(v, x), parts, atol=1e-6)
        except (RuntimeError, ValueError, AttributeError, TypeError):  # its charge asks for more than v and x
            added = False
    if not added:
        raise UserError(f"the neuron '{neuron.family}' ({name}) does not just add up what it keeps and what comes in")
