"""Building blocks of all networks: stages of convolution, norm and neuron, folding of time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from snn_repro.errors import UserError
from snn_repro.kernels.conv import Conv2d
from snn_repro.neurons import NEURONS, Neuron, Setting, build_neuron
from snn_repro.registry import INITS, MODELS

INIT = Setting("torch", "initial weights; torch: those of the network's own code", choices=INITS)
HEAD_INIT = Setting("torch", "initial weights of the classifier; null: torch", choices=("torch", "normal01"))


class Model(NamedTuple):
    """How to build a network, and the settings it takes."""

    build: Callable[..., nn.Module]
    settings: Mapping[str, Setting]


def register_network(name: str, settings: Mapping[str, Setting], *leading):
    """Decorator that registers a network's class or builder; one class may have several names.

    It is called with `leading` and, by keyword, num_classes, input_shape, timesteps, neuron and its settings.
    """

    return MODELS.register(name, lambda build: Model(partial(build, *leading), {**settings, "init": INIT}))


def over_time(x: Tensor, *layers: nn.Module) -> Tensor:
    """Apply stateless layers to x [T, B, ...] folded to [T*B, ...], then unfold."""
    steps, x = x.shape[:2], x.flatten(0, 1)
    for layer in layers:
        x = layer(x)
    return x.unflatten(0, steps)


class AllShapesKnown(Exception):
    """Ends the run on the meta device once every neuron's shape is known."""


class ShapeProbe(nn.Identity):
    """Placeholder for a neuron that records its state's shape: x's without T and B."""

    def __init__(self, probes: list["ShapeProbe"]):
        super().__init__()
        self.probes = probes  # of the whole network, once it is built
        self.shape: tuple[int, ...] | None = None
        probes.append(self)

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape[2:])
        if all(probe.shape is not None for probe in self.probes):
            raise AllShapesKnown  # a linear layer of meta tensors would import torch's compiler (1 s)
        return x


class Neurons(dict[str, Any]):
    """Keywords of `build_neuron`; each call builds the next spiking layer of `build(neuron=self)`.

    State shapes come from one run of that network on the meta device, with a ShapeProbe for each neuron.
    `initial_layers` lists the layers (1 is the first) that use the configured initial state; the others start at 0.
    """

    def __init__(self, given: Mapping[str, Any], build: Callable[..., nn.Module] | None, input_shape=()):
        super().__init__(given)
        self._build, self._input_shape, self._layers = build, input_shape, self.pop("initial_layers", None)
        self.norms: type[nn.Module] | None = None if build else nn.Identity  # replaces norms, which keep the shape
        self._probes: list[ShapeProbe] = []

    @property
    def v_threshold(self) -> float:
        """Threshold of the neurons: the given one, else the family's default."""
        family = NEURONS.get(str(self["name"]).removesuffix("_imp"), Neuron)  # build_neuron refuses an unknown one
        threshold, given = family.settings["v_threshold"], self.get("v_threshold")
        return threshold.default if given is None else threshold.checked("neuron.v_threshold", given)

    def __call__(self, **other) -> nn.Module:
        if self._build is None:
            return ShapeProbe(self._probes)
        if not self._probes:
            probing = Neurons(self, None)
            with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad(), suppress(AllShapesKnown):
                self._build(neuron=probing).eval()(torch.zeros(1, *self._input_shape))
            self._probes, self._total = probing._probes[::-1], len(probing._probes)
            known = range(1, self._total + 1)
            if self._layers is not None and not 0 < len({*self._layers} & {*known}) == len(self._layers):
                allowed = f"distinct spiking layers of this network, from 1 to {self._total}"
                raise UserError(f"neuron.initial_layers={list(self._layers)} must list {allowed}")
        given = {**self, **other, "state_shape": self._probes.pop().shape or (1,)}
        if self._layers is not None and self._total - len(self._probes) not in self._layers:
            given |= dict(name=str(self["name"]).removesuffix("_imp"), imp=False, initial="zero")
        return build_neuron(**given)


class Block(nn.Module):
    """Base class of networks and their blocks: stages of convolution, norm and neuron.

    `checkpointing` sets what the backward pass recomputes to save memory. "off": nothing. "norms": each norm and its
    neuron, so the norm's output is not stored (the fused CPU operator never stores it). "blocks": each block, so only
    the blocks' inputs are stored. Results are identical.
    """

    checkpointing = "off"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # a layer

    def add_stage(
        self, number: int, inputs: int, outputs: int, norm_of: Callable, neuron: Callable, kernel: int = 3,
        stride: int = 1,
    ) -> None:  # fmt: skip
        """Add the convolution convN, its norm bnN and its neuron snN."""
        setattr(self, f"conv{number}", conv(inputs, outputs, kernel, stride))
        setattr(self, f"bn{number}", norm_of(outputs))
        setattr(self, f"sn{number}", neuron())

    def stage(self, number: int, x: Tensor, timesteps: int | None = None, plus=None) -> Tensor:
        """Run a stage that `add_stage` added; see `spikes`."""
        convolution, norm, neuron = (getattr(self, f"{kind}{number}") for kind in ("conv", "bn", "sn"))
        return self.spikes(x, convolution, norm, neuron, timesteps, plus)

    def spikes(
        self, x: Tensor, convolution: Any, norm: Any, neuron: Any, timesteps: int | None = None, plus: Any = None
    ) -> Tensor:
        """Run convolution, norm and neuron on x [T, B, C, H, W]; return spikes.

        The spikes [T, B, C', H', W'] are added to `plus()`, if given. With x [1, B, C, H, W], the same at all
        `timesteps`, convolution and norm run once.
        """
        return self.fire(over_time(x, convolution), norm, neuron, timesteps, plus)

    def fire(self, x: Tensor, norm: Any, neuron: Any, timesteps: int | None = None, plus: Any = None) -> Tensor:
        """Run norm and neuron, in one fused kernel where available, and add `plus()`."""
        timesteps = timesteps or len(x)
        affine = norm.affine_form() if hasattr(norm, "affine_form") and hasattr(neuron, "plan") else None
        plan = None if affine is None else neuron.plan(x, affine, timesteps)
        if plan is not None and plan.norm is not None:
            if plan.backend == "triton" and plus is not None and neuron.adds:
                return neuron(x, plan, plus())
            spikes = neuron(x, plan)
        else:
            spikes = self.through(
                x,
                lambda x: repeat_steps(norm(x), timesteps),
                lambda z: neuron(z) if plan is None or z.dtype != x.dtype else neuron(z, plan),
                what="norms",
            )
        added = None if plus is None else plus()
        return spikes if added is None or spikes.is_meta else added + spikes  # a meta sum imports torch's compiler

    def through(self, x: Tensor, *layers: Callable[[Tensor], Tensor], what: str = "blocks") -> Tensor:
        """Run x through layers, recomputed in the backward pass if `checkpointing` is `what`."""

        def run(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        if self.checkpointing != what or not torch.is_grad_enabled():
            return run(x)
        return checkpoint(run, x, use_reentrant=False, context_fn=lambda: (nullcontext(), same_statistics(self)))


class SpikingNetwork(Block):
    """Base class of networks: frames or a static image -> logits [T, B, K].

    Input: frames [T, B, C, H, W], or a static image [B, C, H, W] that is shown `timesteps` times; the layers before the
    first neuron then run once. A subclass defines `extract`, and `classify` or `fc`.
    """

    causal = True  # in evaluation the logits of a step do not depend on later frames
    wired = False  # whether a layer is built for exactly `timesteps` steps; set by `build_model`

    def __init__(self, input_shape: tuple[int, int, int], timesteps: int):
        super().__init__()
        self.input_shape, self.timesteps = input_shape, timesteps

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Return logits [T, B, K], with last_step only the last step's [1, B, K].

        With last_step, dropout before the classifier draws masks for that step only.
        """
        x = self.extract(x)
        # the gradient of the last step is channels last, as the layers before expect
        return self.classify(x.movedim(2, -1)[-1:].movedim(-1, 2) if last_step else x)

    def extract(self, x: Tensor) -> Tensor:
        """Compute the features [T, B, ...] of frames or a static image, through all neurons."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Compute logits [T, B, K] from features [T, B, ...], without neurons; default: by `fc`."""
        return self.fc(x.flatten(2))

    def steps(self, x: Tensor) -> tuple[Tensor, int]:
        """Return x with a time axis (images [1, B, C, H, W]), and T.

        Raises UserError for a wrong number of axes or channels, or of time steps where a layer is built for one T.
        """
        if x.dim() not in (4, 5) or x.shape[-3] != self.input_shape[0]:
            c, h, w = self.input_shape
            raise UserError(
                f"The network was built for images [B, {c}, {h}, {w}] or frames [T, B, {c}, {h}, {w}], "
                f"not for input of shape {list(x.shape)}; set input_shape to that of the data."
            )
        if x.dim() == 5 and self.wired and len(x) != self.timesteps:
            raise UserError(
                f"The network has a layer built for timesteps={self.timesteps}, but its frames have "
                f"{len(x)} time steps; use the same timesteps, or model.norm=bn if it is a norm."
            )
        return (x.unsqueeze(0), self.timesteps) if x.dim() == 4 else (x, x.shape[0])


class Dropout(nn.Dropout):
    """Dropout of x [T, B, ...] with one mask per sample for all time steps."""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(torch.ones_like(x[0])) if self.training and self.p else x


def same_statistics(module: nn.Module) -> AbstractContextManager:
    """Context, made before a forward pass, that repeats it without changing running statistics."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm | Neuron)]
    buffers = [b.data for m in layers for b in m.buffers(recurse=False)]  # .data: autograd does not see the change
    before = [b.clone() for b in buffers]

    @contextmanager
    def repeat() -> Iterator[None]:
        now = [b.clone() for b in buffers]
        torch._foreach_copy_(buffers, before)
        try:
            yield
        finally:
            torch._foreach_copy_(buffers, now)

    return repeat()


def repeat_steps(x: Tensor, timesteps: int) -> Tensor:
    """Expand x of 1 or T steps to [T, B, ...] without a copy."""
    return x.expand(timesteps, *x.shape[1:])


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Conv2d:
    """Build a convolution without bias, padded to keep the frame's size at stride 1."""
    return Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def init_head(head: nn.Linear, head_init: str) -> None:
    """Initialise a classifier: "torch" keeps torch's own weights, "normal01" draws N(0, 0.01) with bias 0."""
    if head_init == "normal01" and not head.weight.is_meta:
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)


def kaiming(model: nn.Module, zero_bias: bool = False, mode: Any = "fan_out", kinds: Any = nn.Conv2d) -> None:
    """Draw the weights of all layers of some kinds from He's normal distribution (arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, kinds) and not module.weight.is_meta:  # else it would import torch's compiler (1 s)
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if zero_bias and module.bias is not None:
                nn.init.zeros_(module.bias)


class AvgPool2d(nn.AvgPool2d):
    """nn.AvgPool2d that saves only its input's sizes for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        with saved_tensors_hooks(
            lambda x: (x.shape, x.stride(), x.dtype, x.device),
            lambda saved: torch.empty_strided(*saved[:2], dtype=saved[2], device=saved[3]),
        ):
            return super().forward(x)
