"""EventRPG (Sun et al., ICLR 2024, arXiv:2403.09274): augmentation guided by relevance to the network.

Layer-wise relevance propagation distributes the relevance of a unit over its inputs in proportion to their
contributions, from the logits down to the input. There are two rules for spiking networks:

    sltrp  at every time step; the relevance of a potential h[t] is split between the input x[t] and the old potential
           v[t-1], whose share is passed on to step t-1
    slrp   on means over time: alike at all time steps, with fewer convolutions

Both use positive contributions only (alpha = 1): through a convolution or linear layer with weights w,
R_i = sum_j R_j (x_i w_ij)+ / sum_k (x_k w_kj)+. Sums are split by their positive parts too; norms pass relevance on
unchanged. Relevance without a positive contribution is lost, and that of an initial potential goes to the input of its
step. The logits start with 1 - 1/K at the class and -1/K elsewhere.

All other operations (pools, means over pixels, reshapes) are linear: R / activation flows backwards like a gradient. So
relevance takes one forward and one backward pass, in which the layers with a rule use it instead of their gradient. On
two networks it cost 1.5 training steps (slrp) or 2 to 4 (sltrp).
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from snn_repro.data.augment.augmentation import BatchAugmentation, SoftAugmentation, held, register_augmentation, soft
from snn_repro.errors import UserError
from snn_repro.kernels import door
from snn_repro.models.norms import NORMS
from snn_repro.neurons import Neuron
from snn_repro.settings import Setting

# Operations that pass R / activation on unchanged between the layers with a rule, by torch's names.
LINEAR = {
    *"add __add__ __radd__ add_ __iadd__ sum mean stack cat concat dropout clone contiguous to float flatten".split(),
    *"avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d max_pool2d boolean_dispatch unflatten".split(),
    *"reshape view expand repeat permute transpose movedim squeeze unsqueeze narrow __getitem__ unbind".split(),
    *"split chunk tensor_split".split(),
}
SCALED = {"mul", "__mul__", "__rmul__", "div", "__truediv__"}  # linear where the other factor is no activation


class _Ruled(torch.autograd.Function):
    """y, whose backward pass applies `rule` instead of the derivative."""

    @staticmethod
    def forward(ctx, rule: Callable[[Tensor], tuple[Tensor, ...]], y: Tensor, *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        return y.view_as(y)

    @staticmethod
    def backward(ctx, per_output: Tensor):
        return None, None, *ctx.rule(per_output)


class _Rules(TorchFunctionMode):
    """The rules R / output -> R / input of layers and sums.

    steps: (T, B). With `mean` the rules apply to means over time and give all steps the same. Keeps the last feature
    maps [T, B, C, H, W].
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
            parts = [part.detach() for part in activations]
            if len(parts) == 2 and parts[0].shape == parts[1].shape and any((part < 0).any() for part in parts):
                result = _Ruled.apply(lambda per_output: self.sum(parts, per_output), result.detach(), *activations)
            self.features = result if result.dim() == 5 else self.features
        return result

    def over_time(self, x: Tensor) -> Tensor:
        """x [T, B, ...] or [T*B, ...], or its mean over time [B, ...]."""
        return x.reshape(*self.steps, *x.shape[1 if len(x) == self.steps.numel() else 2 :]).mean(0) if self.mean else x

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Repeat for every step what `over_time` made of `like`."""
        return values.expand(self.steps[0], *values.shape).reshape(like.shape) if self.mean else values

    def sum(self, parts: list[Tensor], per_output: Tensor) -> tuple[Tensor, ...]:
        positive = [self.over_time(part.clamp(min=0)) for part in parts]
        share = _divided(self.over_time(per_output) * self.over_time(parts[0] + parts[1]), positive[0] + positive[1])
        found = [_divided(p * share, self.over_time(part)) for p, part in zip(positive, parts, strict=True)]
        return tuple(self.spread(f, per_output) for f in found)

    def passed(self, layer: nn.Module, x: Tensor, R: Tensor, kept: Any) -> Tensor:
        """For a norm, and for a neuron's means over time: each output has one input."""
        return _divided(R, self.over_time(x))

    def weights(self, layer: Any, x: Tensor, R: Tensor, kept: Any) -> Tensor:
        def contributions(values: Tensor, weight: Tensor) -> Tensor:
            if isinstance(layer, nn.Linear):
                return F.linear(values, weight)
            return F.conv2d(values, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

        weight = layer.weight.detach()
        above, below = self.over_time(x.clamp(min=0)), self.over_time(x.clamp(max=0))
        signs = [(above, weight.clamp(min=0)), (below, weight.clamp(max=0))][: 1 + int(below.any())]
        with torch.enable_grad():
            total = torch.as_tensor(sum(contributions(values.requires_grad_(), weight) for values, weight in signs))
            found = torch.autograd.grad(total, [values for values, _ in signs], _divided(R, total.detach()))
        if len(found) == 1:
            return found[0]
        parts = [values.detach() * per_value for (values, _), per_value in zip(signs, found, strict=True)]
        return _divided(parts[0] + parts[1], (above + below).detach())

    def neuron(self, neuron: Neuron, x: Tensor, R: Tensor, kept: Any) -> Tensor:
        """Split R[t] between x[t] and v[t-1] (from t = 1) by their positive parts."""
        if self.mean:
            return self.passed(neuron, x, R, kept)
        found, carried, nothing = torch.empty_like(R), torch.zeros_like(R[0]), torch.zeros_like(R[0])
        for t in range(len(R) - 1, -1, -1):
            of_h = R[t] + carried
            if t:
                from_v = neuron.charge(kept[t - 1], nothing).clamp(min=0)
                part = _divided(from_v, from_v + neuron.charge(nothing, x[t]).clamp(min=0))
                carried, of_h = of_h * part, of_h * (1 - part)
            found[t] = of_h
        return _divided(found, x)

    def put_into(self, module: Any, name: str, stack: ExitStack) -> None:
        """Replace the derivative of a layer by its rule until `stack` closes. Raises UserError."""
        rule: Callable[..., Tensor]
        if isinstance(module, Neuron):
            _check_neuron(module, name)
            rule = self.neuron
        elif isinstance(module, nn.Linear | nn.Conv2d):
            rule = self.weights
        elif isinstance(module, (nn.modules.batchnorm._BatchNorm, *NORMS.values())):
            rule = self.passed
        else:
            return
        compute = module.forward

        def forward(x: Tensor, *_: Any) -> Tensor:  # ignores a neuron's kernel plan: always PyTorch
            with torch.no_grad():
                y = compute(x)
            given, kept = x.detach(), getattr(module, "v_seq", None)

            def back(per_output: Tensor) -> tuple[Tensor]:
                R = self.over_time(per_output) * self.over_time(y)
                return (self.spread(rule(module, given, R, kept), given),)

            result = _Ruled.apply(back, y, x)
            if isinstance(module, Neuron) and result.dim() == 5:
                self.features = result
            return result

        module.forward = forward
        stack.callback(delattr, module, "forward")


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, or 0 where |b| < 1e-12."""
    small = b.abs() < 1e-12
    return torch.where(small, 0, a / torch.where(small, 1, b))


def _check_neuron(neuron: Neuron, name: str) -> None:
    """Raise UserError unless a charge is the sum of potential and input parts."""
    added = False
    v, x, nothing = torch.tensor([[0.3, -0.7], [-0.2, 1.1], [0, 0]]).to(next(neuron.parameters(), torch.empty(0)))
    # a charge may need more arguments than v and x
    with suppress(RuntimeError, ValueError, AttributeError, TypeError), torch.no_grad():
        added = torch.allclose(neuron.charge(v, x), neuron.charge(v, nothing) + neuron.charge(nothing, x), atol=1e-6)
    if not added or type(neuron).steps is not Neuron.steps or type(neuron).begin is not Neuron.begin:
        raise UserError(f"the neuron '{neuron.family}' ({name}) is not additive in its potential and its input")


def relevance(model: nn.Module, frames: Tensor, rule: str = "slrp", parts: int = 1) -> tuple[Tensor, Tensor]:
    """Relevance of frames and of the last feature maps to the predicted class.

    frames [T, B, C, H, W] -> relevances [T, B, C, H, W] and [T, B, C', H', W']; the class is that of the mean output.
    With slrp all time steps are equal and sum to the relevance of the mean. The network runs in evaluation mode, in the
    precision of its weights, on `parts` splits of the samples in turn, and is left as it was. Raises UserError for a
    layer without a rule.
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
    x, rules = frames.detach().requires_grad_(), _Rules(frames.shape[:2], mean)
    with ExitStack() as stack, torch.enable_grad(), door.off(model), torch.autocast(frames.device.type, enabled=False):
        for name, module in model.named_modules():
            # no checkpointing, which would rerun layers without their rules; neurons store their potentials
            for key, value in (("checkpointing", "off"), ("store_v_seq", True)):
                if hasattr(module, key):
                    stack.callback(setattr, module, key, getattr(module, key))
                    setattr(module, key, value)
            rules.put_into(module, name, stack)
        with rules:
            logits = model.forward(x)
    if rules.features is None:
        raise UserError("the network has no feature maps [T, B, C, H, W]")
    average, start = logits.detach().mean(0), torch.full_like(logits, -1 / logits.shape[-1])
    start[:, torch.arange(len(average), device=start.device), average.argmax(1)] += 1
    per_logit = _divided(start, average.expand_as(logits) if mean else logits.detach())
    per_input, per_feature = torch.autograd.grad(logits, (x, rules.features), per_logit)
    found = frames * per_input, rules.features.detach() * per_feature
    return tuple(r.mean(0).expand_as(r) for r in found) if mean else found


def check_relevance(model: nn.Module, shape: tuple[int, ...], rule: str, key: str) -> None:
    """Raise UserError naming `key` if frames [T, B, C, H, W] have no relevance."""
    probe = torch.rand(shape, generator=Generator().manual_seed(0)).to(next(model.parameters()))
    try:
        relevance(model, probe, rule)
    except UserError as error:
        raise UserError(
            f"augment.{key} needs relevance propagation, which is not possible here: {error}; choose another network or"
            " neuron, or turn it off"
        ) from None


# ------------------------------------------------------------------ augmentations


RELEVANCE = Setting(
    "slrp", "rpg_drop, rpg_mix: relevance of means over time (slrp) or of each step (sltrp)", choices=("slrp", "sltrp")
)


class GuidedAugmentation(BatchAugmentation):
    """A batch step on event frames that uses their relevance to the network.

    relevance(frames [T, B, C, H, W], rule) -> (relevance of the frames, of the last feature maps [T, B, C', h, w]);
    training sets it. It uses the weights after the previous step, so a resumed run makes the same batch.
    """

    works_on = ("frames",)
    rule: str
    relevance: Callable[[Tensor, str], tuple[Tensor, Tensor]]

    @staticmethod
    def scaled(relevance: Tensor) -> Tensor:
        """Relevance [T, B, C, H, W] scaled to 0..1 per sample; 0 if constant."""
        low, high = relevance.amin((0, 2, 3, 4), keepdim=True), relevance.amax((0, 2, 3, 4), keepdim=True)
        return (relevance - low) / (high - low).where(high > low, 1)


@register_augmentation("rpg_drop")
class RPGDrop(GuidedAugmentation):
    """RPGDrop: drop events where the network looks, in a whole batch or not at all.

    An event is dropped with probability s r: r is the relevance of its place, scaled to 0..1 in the sample, and s is
    uniform in 0.5..1 per sample. The authors' policy applies it to one batch in ten. The fractional part of a count
    (resized frames) is one event. A sample that would lose all events keeps them.
    """

    settings = {
        "rpg_drop": Setting(0.0, "events: RPGDrop (Sun et al., 2024), probability per batch; 0 is off", low=0, high=1),
        "rpg_relevance": RELEVANCE,
    }  # fmt: skip
    order = 54

    def __init__(self, rpg_drop: float, rpg_relevance: str = "slrp"):
        self.chance, self.rule = rpg_drop, rpg_relevance

    def draw(self, n: int, generator: Generator) -> tuple[Tensor, Tensor] | None:
        """Strengths [n] and seeds [n] of the draws per event; None: change nothing."""
        drops = float(torch.rand(1, generator=generator)) < self.chance
        strength = torch.rand(n, generator=generator) * 0.5 + 0.5
        seeds = torch.randint(2**62, (n,), generator=generator)
        return (strength, seeds) if drops else None

    def apply(self, x: Tensor, target: Tensor, draws, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        if draws is None:
            return x, target
        chance, out = self.scaled(self.relevance(x, self.rule)[0]), x.clone()
        for b, (strength, seed) in enumerate(zip(*(d[rows].tolist() for d in draws), strict=True)):
            generator, places = torch.Generator().manual_seed(seed), x[:, b].nonzero(as_tuple=True)
            events, stays = x[:, b][places], 1 - strength * chance[:, b][places]
            whole = events.floor()
            rest = (torch.rand(len(events), generator=generator) < stays) * (events - whole)
            if (kept := torch.binomial(whole, stays, generator=generator) + rest).any():
                out[:, b][places] = kept
        return out, target


class Box(NamedTuple):
    """A box of pixels in a frame, from row `top` and column `left`."""

    top: int
    left: int
    height: int
    width: int


def salient_box(salience: Tensor) -> Box:
    """The smallest box around all places of a map [H, W] that reach its mean."""
    rows, columns = ((salience >= salience.mean()).any(dim).nonzero().flatten().tolist() for dim in (1, 0))
    return Box(rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0])


def placed(one: Box, two: Box, size: tuple[int, int], draws: list[float]) -> tuple[Box, ...]:
    """Random places of both boxes in a frame (H, W), without overlap if possible.

    They are side by side or one above the other; direction and order are random where both are possible. Boxes that
    must overlap go to opposite corners, `one` on the left. draws: 6 numbers in 0..1.
    """
    fits, turned = [one[2 + axis] + two[2 + axis] <= size[axis] for axis in (0, 1)], draws[1] < 0.5
    if not any(fits):
        up, down = (size[0] - one.height, 0) if turned else (0, size[0] - two.height)
        return one._replace(top=up, left=0), two._replace(top=down, left=size[1] - two.width)
    along = int(draws[0] < 0.5) if all(fits) else int(fits[1])  # 0: one above the other, 1: side by side
    order = (two, one) if turned else (one, two)
    free = size[along] - order[0][2 + along] - order[1][2 + along]
    near, far = sorted(int(draw * (free + 1)) for draw in draws[2:4])
    found = []
    for box, start, draw in zip(order, (near, far + order[0][2 + along]), draws[4:6], strict=True):
        aside = int(draw * (size[1 - along] - box[3 - along] + 1))
        found.append(Box(*((aside, start) if along else (start, aside)), box.height, box.width))
    return tuple(found[::-1] if turned else found)


@register_augmentation("rpg_mix")
class RPGMix(GuidedAugmentation, SoftAugmentation):
    """RPGMix: combine the relevant boxes of two samples, for a whole batch or none.

    A box encloses the places where relevance, that of the last feature maps averaged over channels and time and resized
    to the frame, reaches its mean. Both boxes move to random places together with their events: those of the next
    sample of the batch fill the inside of its box, a sample's own the outside. Labels are weighted by the areas of the
    two boxes, without the covered part of the own. A sample that would be left without events is not mixed.

    The authors mix half of all batches. This is their "post" mask, the default of their code.
    """

    settings = {
        "rpg_mix": Setting(0.0, "events: RPGMix (Sun et al., 2024), probability per batch; 0 is off", low=0, high=1),
        "rpg_relevance": RELEVANCE,
    }  # fmt: skip
    order = 56

    def __init__(self, num_classes: int, rpg_mix: float, rpg_relevance: str = "slrp"):
        self.num_classes, self.chance, self.rule = num_classes, rpg_mix, rpg_relevance

    def draw(self, n: int, generator: Generator) -> Tensor | None:
        """Six numbers per sample [n, 6] for its boxes' places; None: change nothing."""
        mixes = float(torch.rand(1, generator=generator)) < self.chance
        places = torch.rand(n, 6, generator=generator)
        return places if mixes else None

    def partners(self, draws: Tensor | None, rows: Tensor) -> Tensor:
        return rows[:0] if draws is None else (rows + 1) % len(draws)

    def apply(self, x: Tensor, target: Tensor, draws: Tensor | None, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        target = soft(target, self.num_classes)
        if draws is None:
            return x, target

        def moved(i: int, to: Box) -> Tensor:
            down, right = to.top - boxes[i].top, to.left - boxes[i].left
            return F.pad(x[:, i], (right, -right, down, -down))

        size = x.shape[-2], x.shape[-1]
        features = self.scaled(self.relevance(x, self.rule)[1].mean(2, keepdim=True)).mean(0)  # [B, 1, h, w]
        boxes = [salient_box(m[0]) for m in F.interpolate(features, size, mode="bilinear", align_corners=False)]
        out, labels = x.narrow(-4, 0, keep).clone(), target[:keep].clone()
        for b, c in enumerate(held(rows, self.partners(draws, rows[:keep])).tolist()):
            one, two = placed(boxes[b], boxes[c], size, draws[rows[b]].tolist())
            mixed, theirs = moved(b, one), moved(c, two)
            inside = (..., slice(two.top, two.top + two.height), slice(two.left, two.left + two.width))
            mixed[inside] = theirs[inside]
            if mixed.any():
                covered = max(one.height + two.height - size[0], 0) * max(one.width + two.width - size[1], 0)
                mine = one.height * one.width - covered
                weight = mine / (mine + two.height * two.width)
                out[:, b], labels[b] = mixed, weight * target[b] + (1 - weight) * target[c]
        return out, labels
