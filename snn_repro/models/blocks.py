"""What all networks are made of: the block of convolution, norm and neuron, time folded into the batch, two kinds of input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from snn_repro.registry import MODELS

HEAD_INIT = Setting("torch", "initial weights of the classifier; null is torch's", choices=("torch", "normal01"))


class Model(NamedTuple):
    """How to build a network, and the settings it takes."""

    build: Callable[..., nn.Module]
    settings: Mapping[str, Setting]


def register_network(name: str, settings: Mapping[str, Setting], *leading):
    """A decorator of a network's class or builder, which is then called with `leading` and, by name, num_classes, input_shape,
    timesteps, neuron and its settings. One class may have several names.
    """

    return MODELS.register(name, lambda build: Model(partial(build, *leading), settings))


def over_time(x: Tensor, *layers: nn.Module) -> Tensor:
    """Apply stateless layers to every time step at once: x [T, B, ...] is folded to [T*B, ...] and back."""
    steps = x.shape[:2]
    x = x.flatten(0, 1)
    for layer in layers:
        x = layer(x)
    return x.unflatten(0, steps)


class AllSeen(Exception):
    """The run on the meta device has passed every neuron: what follows is not needed."""


class Place(nn.Identity):
    """Where a neuron will stand: passes x [T, B, ...] on and keeps the shape of the state, without T and B."""

    def __init__(self, places: list["Place"]):
        super().__init__()
        self.places = places  # all of the network, once it is built
        self.shape: tuple[int, ...] | None = None
        places.append(self)

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape[2:])
        if all(place.shape is not None for place in self.places):
            raise AllSeen  # a linear layer of meta tensors would import torch's compiler, which takes a second
        return x


class Neurons(dict[str, Any]):
    """Keywords of `build_neuron`; a call builds the next spiking layer of the network that `build(neuron=self)` makes.

    The shapes of the states come from one run of that network on the meta device, with a Place for each neuron. With
    `initial_layers` only the layers of these numbers, from 1 at the input, start as they are told, the others at 0.
    """

    def __init__(
        self, given: Mapping[str, Any], build: Callable[..., nn.Module] | None, input_shape: Sequence[int] = ()
    ):
        super().__init__(given)
        self._build, self._input_shape, self._layers = build, input_shape, self.pop("initial_layers", None)
        self.norms: type[nn.Module] | None = None if build else nn.Identity  # in the place of those, which keep a shape
        self._places: list[Place] = []

    @property
    def v_threshold(self) -> float:
        """The threshold of the neurons, given or published."""
        family = NEURONS.get(str(self["name"]).removesuffix("_imp"), Neuron)  # build_neuron refuses an unknown one
        threshold, given = family.settings["v_threshold"], self.get("v_threshold")
        return threshold.default if given is None else threshold.checked("neuron.v_threshold", given)

    def __call__(self, **other) -> nn.Module:
        if self._build is None:
            return Place(self._places)
        if not self._places:
            places = Neurons(self, None)
            with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad(), suppress(AllSeen):
                self._build(neuron=places).eval()(torch.zeros(1, *self._input_shape))
            self._places, self._total = places._places[::-1], len(places._places)
            known = range(1, self._total + 1)
            if self._layers is not None and not 0 < len({*self._layers} & {*known}) == len(self._layers):
                raise UserError(
                    f"neuron.initial_layers={list(self._layers)} must name spiking layers of this network, each once, of 1 "
                    f"to {self._total}"
                )
        given = {**self, **other, "state_shape": self._places.pop().shape or (1,)}
        if self._layers is not None and self._total - len(self._places) not in self._layers:
            given |= dict(name=str(self["name"]).removesuffix("_imp"), imp=False, initial="zero")
        return build_neuron(**given)


class Block(nn.Module):
    """A part of a network that names its layers itself, so that weights keep their names whoever wrote the file.

    `spikes` is the one way through a convolution, its norm and its neuron. `checkpointing` says what the backward pass runs
    a second time to save memory. "off": nothing. "norms": each norm and its neuron, so that the norm's output is not kept
    (the fused CPU operator never keeps it). "blocks": each block, so that only the blocks' inputs are kept. The numbers
    are the same.
    """

    checkpointing = "off"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # a layer

    def add_stage(
        self,
        number: int,
        inputs: int,
        outputs: int,
        norm_of: Callable,
        neuron: Callable,
        kernel: int = 3,
        stride: int = 1,
    ) -> None:
        """Add the convolution convN, its norm bnN and its neuron snN."""
        setattr(self, f"conv{number}", conv(inputs, outputs, kernel, stride))
        setattr(self, f"bn{number}", norm_of(outputs))
        setattr(self, f"sn{number}", neuron())

    def stage(self, number: int, x: Tensor, timesteps: int | None = None, plus=None) -> Tensor:
        """`spikes` of the stage that `add_stage` added."""
        convolution, norm, neuron = (getattr(self, f"{kind}{number}") for kind in ("conv", "bn", "sn"))
        return self.spikes(x, convolution, norm, neuron, timesteps, plus)

    def spikes(
        self,
        x: Tensor,
        convolution: nn.Module,
        norm: Any,
        neuron: Any,
        timesteps: int | None = None,
        plus: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """x [T, B, C, H, W] -> spikes [T, B, C', H', W'] of a neuron behind a convolution and a norm, `plus()` added to them.

        x may be [1, B, C, H, W], the same at all `timesteps`: convolution and norm then run once.
        """
        return self.fire(over_time(x, convolution), norm, neuron, timesteps, plus)

    def fire(
        self, x: Tensor, norm: Any, neuron: Any, timesteps: int | None = None, plus: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """Spikes of a norm and the neuron behind it (+ plus()), by one kernel where there is one for both."""
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
        """Run x through layers of this module, which the backward pass runs again if `checkpointing` is `what`."""

        def run(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        if self.checkpointing != what or not torch.is_grad_enabled():
            return run(x)
        return checkpoint(run, x, use_reentrant=False, context_fn=lambda: (nullcontext(), same_statistics(self)))


class SpikingNetwork(Block):
    """frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, num_classes].

    A network says how it comes from there to `extract`, features [T, B, ...], and from these to logits, without neurons, in
    `classify`. A static image is seen `timesteps` times; the layers before the first neuron run once for it, not T times. With
    last_step=True the classifier runs for the last step alone: logits [1, B, num_classes], of which a dropout before it
    draws only these masks.
    """

    causal = True  # in evaluation the logits of a step do not depend on later frames
    wired = False  # whether a layer takes this number of time steps alone; `build_model` sees to it

    def __init__(self, input_shape: tuple[int, int, int], timesteps: int):
        super().__init__()
        self.input_shape = input_shape
        self.timesteps = timesteps

    def forward(self, x: Tensor, last_step: bool = False) -> Tensor:
        """Frames [T, B, C, H, W] or a static image [B, C, H, W] -> logits [T, B, K], or the last step's [1, B, K]."""
        x = self.extract(x)
        # the gradient of the last step comes back channels last, as the layers before run
        return self.classify(x.movedim(2, -1)[-1:].movedim(-1, 2) if last_step else x)

    def steps(self, x: Tensor) -> tuple[Tensor, int]:
        """Return x as [1 or T, B, C, H, W], 1 for a static image, and the number of time steps to run.

        Raises UserError for another number of axes, channels or, where a layer is wired to one, of time steps.
        """
        if x.dim() not in (4, 5) or x.shape[-3] != self.input_shape[0]:
            c, h, w = self.input_shape
            raise UserError(
                f"The network was built for images [B, {c}, {h}, {w}] or frames [T, B, {c}, {h}, {w}], "
                f"not for input of shape {list(x.shape)}; set input_shape to that of the data."
            )
        if x.dim() == 5 and self.wired and len(x) != self.timesteps:
            raise UserError(
                f"The network was built with a norm that is wired to timesteps={self.timesteps} but its frames have "
                f"{len(x)} time steps; use the same timesteps or model.norm=bn."
            )
        return (x.unsqueeze(0), self.timesteps) if x.dim() == 4 else (x, x.shape[0])


class Dropout(nn.Dropout):
    """Dropout of x [T, B, ...] with one mask a sample for all time steps: what is dropped stays so while a sample is seen."""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(torch.ones_like(x[0])) if self.training and self.p else x


def same_statistics(module: nn.Module) -> AbstractContextManager:
    """Called before a forward pass: a context in which another one learns nothing twice. Batch norms and neurons have their
    buffers of before, and get back those that they had when it began."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm | Neuron)]
    before = [(b, b.clone()) for m in layers if isinstance(m, Neuron) for b in m.buffers(recurse=False)]

    @contextmanager
    def repeat() -> Iterator[None]:
        now = [(b, b.clone()) for m in layers for b in m.buffers(recurse=False)]
        try:
            _restore(before)
            yield
        finally:
            _restore(now)

    return repeat()


def _restore(buffers: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in buffers:
        buffer.data.copy_(value)  # which autograd does not take for a change of what it kept


def repeat_steps(x: Tensor, timesteps: int) -> Tensor:
    """Return [T, B, ...] of [T, B, ...] or of the one step [1, B, ...] of a static image, without a copy."""
    return x.expand(timesteps, *x.shape[1:])


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Conv2d:
    return Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def init_head(head: nn.Linear, head_init: str) -> None:
    """Initialise a classifier: "torch" keeps torch's own weights, "normal01" draws N(0, 0.01) with bias 0."""
    if head_init == "normal01" and not head.weight.is_meta:
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)


def kaiming_fan_out(model: nn.Module, zero_bias: bool = False) -> None:
    """Draw the weights of all convolutions from He's normal distribution by fan-out (arXiv:1502.01852)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # torch's compiler would draw there: a second
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_bias and module.bias is not None:
                nn.init.zeros_(module.bias)


class AvgPool2d(nn.AvgPool2d):
    """nn.AvgPool2d that keeps nothing for the backward pass: torch's keeps its input, of which it needs the sizes."""

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H', W']."""
        if torch.compiler.is_compiling():
            return super().forward(x)
        with saved_tensors_hooks(
            lambda x: (x.shape, x.stride(), x.dtype, x.device),
            lambda kept: torch.empty_strided(*kept[:2], dtype=kept[2], device=kept[3]),
        ):
            return super().forward(x)
