"""Optimiser, parameter groups and learning-rate schedule of a recipe."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from snn_repro.config.schema import RecipeConfig
from snn_repro.registry import OPTIMIZERS, SCHEDULES
from snn_repro.settings import Setting


class Choice(NamedTuple):
    """An optimiser or schedule.

    build: (groups, recipe) -> optimiser, or (recipe, epoch, epochs) -> factor of the learning rate. reads: keys of the
    recipe that only some choices use; settings: its own keys.
    """

    build: Callable[..., Any]
    reads: tuple[str, ...]
    settings: Mapping[str, Setting]


def register_optimizer(name: str, *reads: str, **settings: Setting) -> Callable:
    """Decorator of build(groups, recipe) -> torch.optim.Optimizer: `recipe.optimizer=NAME`."""
    return OPTIMIZERS.register(name, lambda build: Choice(build, reads, settings))


def register_schedule(name: str, *reads: str, **settings: Setting) -> Callable:
    """Decorator of factor(recipe, epoch, epochs), epochs after the warm-up: `recipe.schedule=NAME`."""
    return SCHEDULES.register(name, lambda build: Choice(build, reads, settings))


def _plain(cls: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The optimiser without torch.compile's wrappers: importing the compiler takes most of a second."""
    names = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(cls, name)) for name in names}
    return type(cls.__name__, (cls,), methods | {"step": torch.no_grad()(methods["step"])})


def _fused(groups) -> bool | None:
    """True for the fused update, on CPU and CUDA, which does not wait for the loss scale."""
    return {p.device.type for group in groups for p in group["params"]} in ({"cpu"}, {"cuda"}) or None


def _torchs(cls: type[torch.optim.Optimizer], groups, r: RecipeConfig, **options):
    return _plain(cls)(groups, lr=r.lr, fused=_fused(groups), **options)


@register_optimizer("sgd", "momentum", "nesterov")
def _sgd(groups, r: RecipeConfig):
    return _torchs(torch.optim.SGD, groups, r, momentum=r.momentum, nesterov=r.nesterov)


@register_optimizer("adam", "eps")
def _adam(groups, r: RecipeConfig):
    return _torchs(torch.optim.Adam, groups, r, eps=r.eps)


@register_optimizer("adamw", "eps")
def _adamw(groups, r: RecipeConfig):
    return _torchs(torch.optim.AdamW, groups, r, eps=r.eps)


@register_optimizer("lamb", "eps")
def _lamb(groups, r: RecipeConfig):
    from timm.optim import Lamb  # slow import, used by two recipes

    return Lamb(groups, lr=r.lr, eps=r.eps)  # clips the global gradient norm at 1 itself


@register_schedule("cosine", "min_lr")
def _cosine(r: RecipeConfig, epoch: int, epochs: int) -> float:
    low = r.min_lr / r.lr
    return low + (1 - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@register_schedule("step", "step_epochs", "step_gamma")
def _step(r: RecipeConfig, epoch: int, epochs: int) -> float:
    return r.step_gamma ** (epoch // r.step_epochs)


@register_schedule("constant")
def _constant(r: RecipeConfig, epoch: int, epochs: int) -> float:
    return 1.0


def parameter_kind(module: Any, name: str) -> str:
    """Kind of a parameter: imp, neuron (never decayed), te (TEBN's step scale), norm, bias, weight."""
    if hasattr(module, "parameter_kind"):
        return module.parameter_kind(name)
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
        return "norm"
    return "bias" if name == "bias" else "weight"


def parameter_groups(
    model: nn.Module, recipe: RecipeConfig, imp_lr: float = 1.0, imp_weight_decay: float | None = 0.0
) -> list[dict]:
    """Optimiser groups of the trainable parameters by `kind`: decay, no_decay, imp.

    Kinds in `recipe.no_decay` and neuron parameters are not decayed. imp_lr: factor of IMP's learning rate.
    imp_weight_decay: None uses the recipe's.
    """
    imp_decay = recipe.weight_decay if imp_weight_decay is None else imp_weight_decay
    groups: dict[str, dict[str, Any]] = {
        "decay": dict(kind="decay", params=[], lr=recipe.lr, weight_decay=recipe.weight_decay),
        "no_decay": dict(kind="no_decay", params=[], lr=recipe.lr, weight_decay=0.0),
        "imp": dict(kind="imp", params=[], lr=recipe.lr * imp_lr, weight_decay=imp_decay),
    }
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                kind = parameter_kind(module, name)
                spared = kind in (*recipe.no_decay, "neuron")
                groups["imp" if kind == "imp" else "no_decay" if spared else "decay"]["params"].append(parameter)
    return [g for g in groups.values() if g["params"]]


def build_optimizer(model: nn.Module, recipe: RecipeConfig, **imp: Any) -> torch.optim.Optimizer:
    """Build the recipe's optimiser (imp: imp_lr, imp_weight_decay); every IMP must exist before this."""
    recipe = recipe.scaled()
    return OPTIMIZERS[recipe.optimizer].build(parameter_groups(model, recipe, **imp), recipe)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load an optimiser's state onto this device; update kernel and strides stay the parameters' own."""
    groups = [
        saved | {k: own[k] for k in ("fused", "foreach") if k in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for p, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.dim() and value.shape != p.shape:
                raise ValueError(f"the optimiser's {name} has shape {list(value.shape)}, its parameter {list(p.shape)}")
            if torch.is_tensor(value) and value.shape == p.shape and value.stride() != p.stride():
                values[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def lr_factor(recipe: RecipeConfig, steps_per_epoch: int, step: int) -> float:
    """Learning rate of optimiser step `step` (from 0), as a factor of `recipe.lr`.

    Linear warm-up per iteration from `warmup_factor` to 1 at the last warm-up iteration; then per epoch by the
    schedule.
    """
    warm = recipe.warmup_epochs * steps_per_epoch
    if step < warm:
        return recipe.warmup_factor + (1 - recipe.warmup_factor) * step / max(1, warm - 1)
    epoch = step // steps_per_epoch - recipe.warmup_epochs
    return SCHEDULES[recipe.schedule].build(recipe, epoch, recipe.epochs - recipe.warmup_epochs)


def build_schedule(optimizer: torch.optim.Optimizer, recipe: RecipeConfig, steps_per_epoch: int):
    """LambdaLR of `lr_factor`, to be stepped after every optimiser step."""
    recipe = recipe.scaled()
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(recipe, steps_per_epoch, step))
