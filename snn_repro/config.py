"""The configuration: what every key is called, its type, unit, meaning and range, and the one gate that checks it.

`load_config(["experiment=...", "seed=1"])` composes `conf/` with Hydra and returns a validated `Config`.
`checked(cfg)` is the only way from a composed OmegaConf node to a `Config`; it raises `ConfigError`, one sentence that
names the key, the value and what is allowed, before any data is read. This module does not import torch.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING, DictConfig, OmegaConf, open_dict, read_write

from snn_repro import outside
from snn_repro.data.sets import SETS
from snn_repro.errors import UserError, nearest

log = logging.getLogger("snn_repro")

_HERE = Path(__file__).resolve().parent
# beside the package in a clone, inside of it in a wheel
CONF_DIR = next(
    (d for d in (_HERE.parent / "conf", _HERE / "conf") if (d / "train.yaml").is_file()), _HERE.parent / "conf"
)
GROUPS = ("dataset", "model", "neuron", "loss", "recipe", "experiment", "fidelity", "debug")


class ConfigError(UserError):
    """A key, value or combination that the configuration does not allow."""


class Names:
    """The names of one registry, as the `choices` of a key, without importing torch as long as that can be.

    What this package has is read from the text of its sources; other names are asked of the registry, if it was imported
    already or a package from outside is installed, which may add to it.
    """

    def __init__(self, module: str, registry: str, decorator: str):
        self.where, self.decorator = (module, registry), decorator

    def ours(self) -> tuple[str, ...]:
        return _registered(self.where[0], self.decorator)

    def asked(self) -> dict[str, Any]:
        """The registry; {} where it was not imported and nobody could have added to it."""
        module, registry = self.where
        if module not in sys.modules and not outside.packages():
            return {}
        return getattr(importlib.import_module(module), registry)

    def __contains__(self, name: object) -> bool:
        return name in self.ours() or name in self.asked()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self.ours(), *self.asked())))


@cache
def _registered(module: str, decorator: str) -> tuple[str, ...]:
    """The names given by `@decorator("name"` in the sources of a module or in the folder of a package, file by file."""
    path = _HERE.joinpath(*module.split(".")[1:])
    files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    pattern = re.compile(rf'^@{decorator}\("(\w+)"', re.MULTILINE)
    return tuple(name for file in files for name in pattern.findall(file.read_text("utf-8")))


NEURON_NAMES = Names("snn_repro.neurons", "NEURONS", "register")
SURROGATE_NAMES = Names("snn_repro.neurons", "SURROGATES", "register_surrogate")
NETWORK_NAMES = Names("snn_repro.models", "MODELS", "register_network")
LOSS_NAMES = Names("snn_repro.losses", "LOSSES", "register_loss")
NORM_NAMES = Names("snn_repro.models", "NORMS", "register_norm")


def key(default: Any, help: str, *, unit: str = "", low=None, high=None, above=None, below=None, choices=None):
    """A schema field: default, meaning, unit and the range `checked` enforces (low/high inclusive, above/below not)."""
    meta = dict(help=help, unit=unit, low=low, high=high, above=above, below=below, choices=choices)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=meta)
    return field(default=default, metadata=meta)


def _own():
    """A part's settings that only the chosen neuron, loss or network has: its yaml names them (`own_keys`), its class
    checks their values. They are written as the part's other keys: neuron.KEY."""
    return field(default_factory=dict, metadata={"own": True})


@dataclass
class DatasetConfig:
    name: str = key(MISSING, "data set", choices=SETS)
    timesteps: int = key(4, "T a data set is usually run with; the default of the top-level `timesteps`", low=1)
    validation: float = key(
        0.0,
        "part of the training set held out for model selection (dvs_gesture: whole people); test is never touched",
        low=0.0,
        below=1.0,
    )
    split: str = key("official", "named train/test split (snn_repro/data/sets/)")
    split_seed: int = key(0, "seed of the validation part; independent of the run's seed", low=0)
    train_subset: int = key(
        0, "keep only this many training samples, stratified and seeded; 0 keeps all", unit="samples", low=0
    )
    frame_size: int | None = key(
        None, "resize frames to this height and width; null keeps the native size", unit="pixels", low=4
    )
    integrate_by: str = key(
        "number", "how events become T frames: equal numbers of events, or equal time", choices=("number", "time")
    )
    channel_order: str = key(
        "rgb", "order of colour channels; the paper's CIFAR code feeds bgr", choices=("rgb", "bgr")
    )
    workers: int = key(0, "loader processes for data sets that decode files; changes no number", low=0)
    verify: str = key(
        "first_read",
        "hold prepared frames against their checksums when a run first reads them, or not at all",
        choices=("first_read", "off"),
    )


@dataclass
class ModelConfig:
    name: str = key(MISSING, "network")
    norm: str | None = key(None, "norm layer; null is the network's own", choices=NORM_NAMES)
    zero_init_residual: bool | None = key(None, "SEW-ResNet: start the last norm of each branch at 0")
    head_init: str | None = key(
        None, "SEW-ResNet, vgg128: initial weights of the classifier", choices=("torch", "normal01")
    )
    stem_pool: str | None = key(None, "SEW-ResNet of ImageNet: pool of the stem, avg if null", choices=("avg", "max"))
    dropout: float | None = key(
        None, "dropout before linear layers of the VGGs, PLIF-Nets and tcja", low=0.0, below=1.0
    )
    conv_backend: str = key(
        "auto", "convolutions on a CPU: sparse visits nonzero inputs alone, auto takes the faster one in every call",
        choices=("auto", "dense", "sparse"),
    )  # fmt: skip
    checkpointing: str = key(
        "off", "what the backward pass runs again to save memory: norms and their neurons, or whole blocks",
        choices=("off", "norms", "blocks"),
    )  # fmt: skip
    weights: str | None = key(
        None,
        "initial weights, ours, torchvision's or a SEW-ResNet of its authors: a path, or a file name in data_dir, data_dir/weights or torch hub",
    )
    own: dict[str, Any] = _own()


@dataclass
class NeuronConfig:
    name: str = key(
        MISSING, "family: if h = v + x; lif h = v + (x - v)/tau; leaky h = retain v + x", choices=NEURON_NAMES
    )
    imp: bool = key(False, "learnable initial membrane potential, one value a neuron (the paper's IMP)")
    v_threshold: float = key(1.0, "firing threshold V_th", above=0.0)
    reset: str = key(
        "soft", "soft: v = h - V_th o; hard: v = v_reset where a spike was fired", choices=("soft", "hard")
    )
    v_reset: float = key(0.0, "potential after a hard reset")
    fire_at: str = key("ge", "fire at h >= V_th (ge) or h > V_th (gt)", choices=("ge", "gt"))
    detach_reset: bool = key(False, "leave the reset out of the backward pass")
    surrogate: str = key("atan", "surrogate gradient of the spike", choices=SURROGATE_NAMES)
    surrogate_width: float | None = key(
        None, "ATan alpha (2), sigmoid alpha (4) or triangle gamma (1); null takes these", above=0.0
    )
    tau: float = key(2.0, "lif: membrane time constant", unit="time steps", low=1.0)
    decay_input: bool = key(
        True, "lif: the input decays too; false: it enters at full weight, h = (1 - 1/tau) v + x, the paper's equation"
    )
    retain: float = key(0.25, "leaky: part of v that one step keeps", low=0.0, high=1.0)
    backend: str = key(
        "auto",
        "who computes the neuron; changes roundings only; auto is cpu on a CPU and torch on a GPU",
        choices=("auto", "torch", "cpu", "triton", "spikingjelly"),
    )
    imp_init: list[float] = key([0.4, 0.6], "IMP starts uniform in [low, high]")
    imp_trainable: bool = key(True, "false leaves IMP at its random start, as several published rows did")
    imp_lr: float = key(1.0, "IMP's learning rate as a factor of the recipe's", low=0.0)
    imp_weight_decay: float | None = key(0.0, "IMP's weight decay; null uses the recipe's", low=0.0)
    own: dict[str, Any] = _own()


@dataclass
class LossConfig:
    name: str = key(MISSING, "training objective and readout", choices=LOSS_NAMES)
    epsilon: float | None = key(None, "tet_s: label smoothing", low=0.0, below=1.0)
    lam: float | None = key(None, "tet: weight lambda of the MSE term", low=0.0, high=1.0)
    phi: float | None = key(None, "tet: target phi of the MSE term")
    own: dict[str, Any] = _own()


@dataclass
class RecipeConfig:
    epochs: int = key(10, "passes over the training set", low=1)
    batch_size: int = key(64, "training samples a step, over all processes together", low=1)
    eval_batch_size: int = key(256, "samples a step in evaluation", low=1)
    accumulate: int = key(
        1, "split a batch into this many parts to fit memory; the step stays one; processes share the parts", low=1
    )
    optimizer: str = key("sgd", "optimiser", choices=("sgd", "adam", "adamw", "lamb"))
    lr: float = key(0.1, "learning rate", above=0.0)
    momentum: float = key(0.9, "sgd: momentum", low=0.0, below=1.0)
    nesterov: bool = key(False, "sgd: Nesterov momentum")
    weight_decay: float = key(0.0, "weight decay", low=0.0)
    no_decay: list[str] = key([], "parameters without weight decay, any of: bias norm te")
    eps: float = key(1e-8, "adam, adamw, lamb: epsilon", above=0.0)
    schedule: str = key("cosine", "learning rate after warm-up", choices=("cosine", "step", "constant"))
    min_lr: float = key(0.0, "cosine: learning rate at the end", low=0.0)
    step_epochs: int = key(30, "step: epochs between two drops", low=1)
    step_gamma: float = key(0.1, "step: factor of a drop", above=0.0, high=1.0)
    warmup_epochs: int = key(0, "linear warm-up, per iteration", unit="epochs", low=0)
    warmup_factor: float = key(1e-4, "first learning rate of the warm-up as a factor of lr", above=0.0, high=1.0)
    clip_norm: float = key(0.0, "clip the gradient's global norm; 0 is off", low=0.0)
    amp: str = key(
        "auto", "mixed precision: auto is fp16 on CUDA and off elsewhere; bf16 also on a CPU with units for it",
        choices=("auto", "off", "fp16", "bf16"),
    )  # fmt: skip
    ema_decay: float = key(0.0, "evaluate an exponential moving average of the weights; 0 is off", low=0.0, below=1.0)
    drop_last: bool = key(False, "leave out a last, smaller training batch")
    repeated_augmentation: int = key(
        1, "copies of an image in one batch; an epoch then has 1/copies of the images", low=1
    )
    sync_bn: bool = key(
        False, "several processes: batch norm over the whole batch; false: over each process's share, as torch does"
    )
    imp_lr: float = key(II("neuron.imp_lr"), "factor on lr for IMP; by default the neuron's", low=0.0)
    imp_weight_decay: float | None = key(
        II("neuron.imp_weight_decay"), "weight decay of IMP; by default the neuron's", low=0.0
    )


@dataclass
class AugmentConfig:
    crop_padding: int = key(0, "random crop after padding by this much", unit="pixels", low=0)
    flip: float = key(0.0, "chance of a horizontal flip", low=0.0, high=1.0)
    rrc_min_area: float = key(0.0, "RandomResizedCrop: smallest area; 0 is off", low=0.0, high=1.0)
    interpolation: str = key("bicubic", "RandomResizedCrop and test resize", choices=("bicubic", "bilinear"))
    randaugment_ops: int = key(0, "RandAugment: operations an image; 0 is off", low=0)
    randaugment_level: int = key(7, "RandAugment: level of 10", low=0, high=10)
    randaugment_std: float = key(0.5, "RandAugment: standard deviation of the level", low=0.0)
    test_resize: int = key(0, "ImageNet test: short side before the centre crop; 0 is 256", unit="pixels", low=0)
    event_policy: bool = key(False, "events: one of 6 operations a sample, the same for all T")
    nda: bool = key(False, "events: neuromorphic data augmentation (Li et al., 2022)")
    eventdrop: bool = key(False, "events: EventDrop (Gu et al., 2021)")
    mixup: float = key(0.0, "Mixup alpha; 0 is off", low=0.0)
    cutmix: float = key(0.0, "CutMix alpha; 0 is off", low=0.0)
    mix_prob: float = key(1.0, "chance that a batch is mixed", low=0.0, high=1.0)
    label_smoothing: float = key(
        0.0, "smooth the training targets of any loss; several published SDT and TET rows do", low=0.0, below=1.0
    )
    cutmix_axes: str = key(
        "spatial", "published cuts polarity and height, as the paper's code does", choices=("spatial", "published")
    )


@dataclass
class LoggerConfig:
    mode: str = key(
        "offline", "Weights & Biases: offline needs no account; WANDB_MODE=disabled or offline in the environment wins",
        choices=("online", "offline", "disabled"),
    )  # fmt: skip
    project: str = key("snn_repro", "W&B project")
    entity: str | None = key(None, "W&B team or user; null is the account's own")
    tags: list[str] = key([], "W&B tags besides data set, model, neuron and loss")


@dataclass
class SlurmConfig:
    """What `hydra/launcher=slurm` asks of the cluster for each run; see docs/cluster.md."""

    partition: str | None = key(None, "hydra/launcher=slurm: partition; null is the cluster's default")
    account: str | None = key(None, "hydra/launcher=slurm: account that pays; null is the user's own")
    qos: str | None = key(None, "hydra/launcher=slurm: quality of service")
    constraint: str | None = key(None, "hydra/launcher=slurm: node feature, such as a GPU type")
    gpus: int = key(1, "hydra/launcher=slurm: GPUs a run", low=0)
    processes: int = key(
        1, "hydra/launcher=slurm: processes a run; as many as GPUs to train one network on several", low=1
    )
    cpus: int = key(4, "hydra/launcher=slurm: CPU cores a process", low=1)
    memory: int = key(16, "hydra/launcher=slurm: memory a run", unit="GB", low=1)
    time: int = key(
        720, "hydra/launcher=slurm: time limit; a longer run is continued in its next turn", unit="minutes", low=1
    )
    notice: int = key(120, "hydra/launcher=slurm: save and requeue this long before the limit", unit="seconds", low=10)
    requeues: int = key(100, "hydra/launcher=slurm: how often a run may meet its time limit", low=0)
    parallel: int = key(256, "hydra/launcher=slurm: runs at the same time", low=1)


@dataclass
class DebugConfig:
    max_steps: int = key(0, "training steps an epoch; 0 is all", low=0)
    max_eval_batches: int = key(0, "evaluation batches; 0 is all", low=0)
    profile: bool = key(False, "write a torch.profiler trace of the first steps into the run folder")


@dataclass
class Config:
    name: str = key(MISSING, "the row: names the run's folder, its line in tables and its W&B group")
    paper_row: str | None = key(None, "id of the row of the paper's tables that this run reproduces")
    fidelity: str = key(
        "published", "the released code's settings, the same where no code for the row was released or it cannot run, or the "
        "paper's equations; choose with fidelity=...",
        choices=("published", "extended", "described"),
    )  # fmt: skip
    baselines: list[str] = key(
        [], "rows of the same recipe to measure the gain against: without all that this row adds, then without one part"
    )
    unspecified: list[str] = key([], "keys that no source of the paper settles; the row's file says why we chose so")
    caveats: list[str] = key([], "why a number of this row cannot stand beside the paper's as it is, in words")
    seed: int = key(0, "seed of weights, order and augmentation", low=0, below=2**31)
    timesteps: int = key(II("dataset.timesteps"), "simulation steps T", low=1)
    data_dir: str | None = key(None, "folder with the public data sets, as downloaded; only ever read")
    cache_dir: str | None = key(
        None, "folder for prepared frames (scripts/prepare_data.py); digits_dvs keeps its frames there too"
    )
    resume: str = key(
        "auto", "auto continues an unfinished run of this configuration; never starts again", choices=("auto", "never")
    )
    force: bool = key(False, "run again although a finished result of this configuration exists")
    skip_finished: bool = key(True, "sweeps leave out what is finished; false trains it again and continues the rest")
    device: str = key("auto", "auto is cuda where there is one", choices=("auto", "cpu", "cuda"))
    threads: int = key(
        0, "CPU threads; 0 is 1 for the small model (faster there), else torch's default; sums are rounded in another order",
        low=0, high=4096,
    )  # fmt: skip
    energy: bool = key(False, "add synaptic operations and energy (spikingjelly's counters) to result.json")
    kernels: str = key(
        "auto", "who computes the layers: off is PyTorch alone; dense, sparse are about convolutions; moves roundings only",
        choices=("auto", "off", "triton", "spikingjelly", "dense", "sparse"),
    )  # fmt: skip
    compile: bool = key(False, "torch.compile the network; on a CPU it needs a C++ compiler")
    deterministic: bool = key(True, "ask torch for deterministic algorithms; CUDA may be slower")
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    neuron: NeuronConfig = field(default_factory=NeuronConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    run_dir: str | None = key(None, "set by Hydra's hydra.run.dir; not a key to set")


# Keys that say where or how a run happens. Some still move numbers by rounding (threads, device, backends, compile), or
# with the number of processes (sync_bn): result.json says what they were, and tables show where runs differ in it.
NOT_HASHED = (
    "run_dir", "data_dir", "cache_dir", "resume", "force", "device", "threads", "logger", "energy",
    "skip_finished", "slurm",
    "dataset.workers", "dataset.verify", "debug.profile", "baselines", "unspecified", "caveats",
    "model.conv_backend", "model.checkpointing", "neuron.backend", "kernels", "compile",
    "recipe.sync_bn",  # matters with several processes alone, and their number is no key either
)  # fmt: skip

# Keys that came after results existed, with the value that stands for what was done before: with this value a key stays
# out of the hash, so that earlier results go on belonging to their configuration.
ADDED = {"neuron.decay_input": True, "model.stem_pool": None}

OWN = {
    "neuron": NeuronConfig,
    "loss": LossConfig,
    "model": ModelConfig,
}  # groups whose choices may have settings of their own


def _schema() -> DictConfig:
    """What Hydra composes with. The parts in OWN let other keys pass; `checked` says which of them there are."""
    node = OmegaConf.structured(Config)
    for group in OWN:
        OmegaConf.set_struct(node[group], False)
        node[group].pop("own")
    return node


ConfigStore.instance().store(name="schema", node=_schema())

# Overrides that already show in a run's folder name, or that change no number.
_NOT_IN_FOLDER = ("name", "seed", *NOT_HASHED)


def tweaks(overrides: list[str]) -> str:
    """The part of a run's folder between row and seed: the overrides that neither the row's name nor the seed says.

    Without an experiment the name holds the four choices; with one, each override departs from the row. A name of the
    user's own says none of them.
    """
    named = {o.split("=")[0] for o in overrides} & {"name", "experiment"}
    in_name = () if named else ("dataset", "model", "neuron", "loss")
    skip = (*(() if "name" in named else ("experiment",)), *in_name, *_NOT_IN_FOLDER)
    parts = []
    for override in sorted(overrides):
        name = override.split("=")[0].lstrip("+~")
        if not any(name == k or name.startswith(k + ".") for k in skip if k not in GROUPS) and name not in skip:
            parts.append(re.sub(r"""^([^=]*=)(["'])(.*)\2$""", r"\1\3", override).replace("/", "_"))
    text = ",".join(parts)
    return text if len(text) <= 200 else hashlib.sha256(text.encode()).hexdigest()[:16]


OmegaConf.register_new_resolver("tweaks", lambda overrides: tweaks(list(overrides)), replace=True)
# For conf/fidelity/described.yaml: false for the one family that can decay its input, else the key's default.
OmegaConf.register_new_resolver("undecayed", lambda family: family != "lif", replace=True)


# ---------------------------------------------------------------- composing


def load_config(overrides: list[str] | None = None) -> Config:
    """Compose `conf/` with Hydra overrides (as on the command line) and check the result.

    `hydra.run.dir=...` among the overrides sets `run_dir`. Raises ConfigError with one sentence.
    """
    return compose_checked(readable(overrides or []), say=log.warning)


def compose_checked(overrides: list[str], sweep: bool = False, say: Callable[[str], None] = lambda _: None) -> Config:
    """As `load_config`, for overrides that `readable` has seen; with `sweep`, `run_dir` is where a multirun puts this
    job, and it is left to the caller to refuse keys without effect (`idle`). `say` hears what was adjusted."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    refuse_misplaced(overrides, sweep)
    with _hydra():
        before = HydraConfig.instance().cfg
        try:
            node = compose("train", overrides=overrides, return_hydra_config=True)
            HydraConfig.instance().set_config(node)
            refuse_code(node)
            folder = Path(node.hydra.sweep.dir, node.hydra.sweep.subdir) if sweep else Path(node.hydra.run.dir)
            elsewhere = "submitit" in node.hydra.launcher._target_
            if "hydra" in node:
                OmegaConf.set_struct(node, False)
                node.pop("hydra")
            config = settled(node, overrides, say)
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(explain(error)) from None
        finally:
            HydraConfig.instance().cfg = before
    if not elsewhere:
        check_machine(config)
    if not sweep:
        for sentence in idle(config, overrides).values():
            raise ConfigError(sentence)
    config.run_dir = str(folder.absolute())
    return config


# ---------------------------------------------------------------- what was typed

PATHS = ("data_dir", "cache_dir", "model.weights", "hydra.run.dir", "hydra.sweep.dir")


def readable(overrides: Iterable[str], sweep: bool = False) -> list[str]:
    """The overrides with `~` of a path expanded, and with quotes around paths that Hydra's grammar cannot read bare
    (`=`, accents, brackets, commas of a single run). What needs neither stays as it is."""
    return [_readable_path(o, sweep) if o.lstrip("+").split("=")[0] in PATHS else o for o in overrides]


def _readable_path(override: str, sweep: bool) -> str:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    name, _, value = override.partition("=")
    if not value or "${" in value:
        return override
    if value[0] in "\"'" and value[-1] == value[0]:
        return f"{name}={value[0]}{os.path.expanduser(value[1:-1])}{value[0]}"
    path = os.path.expanduser(value)
    try:
        parsed = OverridesParser.create().parse_override(f"{name}={path}")
    except HydraException:
        if sweep and "," in value:
            return f"{name}={','.join(quoted(os.path.expanduser(part.strip())) for part in value.split(','))}"
        return f"{name}={quoted(path)}"
    if parsed.is_sweep_override():
        return override if sweep or "(" in value else f"{name}={quoted(path)}"
    if parsed.value() is None:
        return override
    return f"{name}={path}" if isinstance(parsed.value(), str) else f"{name}={quoted(path)}"


def quoted(value: str) -> str:
    """A value in quotes that Hydra's grammar takes off again."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), value)
    return f'"{escaped}"'


def refuse_misplaced(overrides: Iterable[str], sweep: bool) -> None:
    """Raise ConfigError for an override that would be ignored, or that means something else where it stands."""
    for override in overrides:
        name, equals, value = override.lstrip("+").partition("=")
        group, _, last = name.partition(".")
        if last == "name" and group in ("dataset", "model", "neuron", "loss"):
            raise ConfigError(
                f"{override} would change the name without the other values of conf/{group}/; write {group}={value or 'NAME'}"
            )
        if name == "hydra.run.dir" and sweep:
            raise ConfigError(
                "hydra.run.dir is for a single run; in a sweep use hydra.sweep.dir=DIR (each run gets DIR/<row>/seed<k>) or name=..."
            )
        if name in ("hydra.sweep.dir", "hydra.sweep.subdir") and not sweep:
            raise ConfigError(f"{name} is for sweeps (-m); for a single run use hydra.run.dir=DIR")
        if name in ("hydra.run.dir", "hydra.sweep.dir") and equals and value in ("", "null", "''", '""'):
            raise ConfigError(f"{override} names no folder; write {name}=DIR, or leave it out")


def given_keys(overrides: Iterable[str]) -> dict[str, str]:
    """`{"recipe.lr": "recipe.lr=0.05", ...}`: the keys that were set one by one, not those of a chosen file."""
    pairs = ((o.lstrip("+").split("=")[0], o) for o in overrides if "=" in o and not o.startswith("~"))
    return {name: o for name, o in pairs if name not in GROUPS and not name.startswith("hydra")}


def settled(node: DictConfig, overrides: Iterable[str], say: Callable[[str], None]) -> Config:
    """`checked(node)`; with `recipe.epochs` set by hand, the recipe's own warm-up keeps its share of a shorter training."""
    from hydra import compose
    from hydra.errors import HydraException

    given, recipe = given_keys(overrides), node.get("recipe") or {}
    epochs, warmup = recipe.get("epochs"), recipe.get("warmup_epochs")
    numbers = isinstance(epochs, int) and isinstance(warmup, int)
    if "recipe.epochs" in given and "recipe.warmup_epochs" not in given and numbers and 0 < epochs <= warmup:
        with _hydra(), contextlib.suppress(HydraException):  # what is wrong there is said by `checked`
            others = [o for o in overrides if o.lstrip("+").split("=")[0] != "recipe.epochs"]
            usual = compose("train", overrides=others).recipe.epochs
            node.recipe.warmup_epochs = warmup * epochs // max(usual, epochs + 1)
            say(
                f"recipe.warmup_epochs is {node.recipe.warmup_epochs} instead of the recipe's {warmup} (of {usual} epochs), "
                f"because of recipe.epochs={epochs}"
            )
    return checked(node)


def check_machine(config: Config) -> None:
    """Raise ConfigError for more threads than this machine can sensibly run."""
    cores = os.cpu_count() or 1
    limit = max(4 * cores, 16)
    if config.threads > limit:
        raise ConfigError(
            f"threads={config.threads} is more than this machine takes: it has {cores} CPU cores, the limit is {limit}"
        )


class _Idle(NamedTuple):
    """Keys that only some configurations read."""

    keys: tuple[str, ...]
    read: Callable[[Config], bool]  # whether this configuration reads them
    because: str  # the key that decides it
    needs: str


_IDLE = (
    _Idle(("recipe.momentum", "recipe.nesterov"), lambda c: c.recipe.optimizer == "sgd", "recipe.optimizer", "recipe.optimizer=sgd"),
    _Idle(("recipe.eps",), lambda c: c.recipe.optimizer != "sgd", "recipe.optimizer", "recipe.optimizer=adam, adamw or lamb"),
    _Idle(("recipe.step_epochs", "recipe.step_gamma"), lambda c: c.recipe.schedule == "step", "recipe.schedule", "recipe.schedule=step"),
    _Idle(("recipe.min_lr",), lambda c: c.recipe.schedule == "cosine", "recipe.schedule", "recipe.schedule=cosine"),
    _Idle(("recipe.warmup_factor",), lambda c: c.recipe.warmup_epochs > 0, "recipe.warmup_epochs", "recipe.warmup_epochs above 0"),
    _Idle(
        ("neuron.imp_init", "neuron.imp_trainable", "neuron.imp_lr", "neuron.imp_weight_decay", "recipe.imp_lr",
         "recipe.imp_weight_decay"),
        lambda c: c.neuron.imp, "neuron.imp", "a neuron with IMP, such as neuron=if_imp",
    ),
    _Idle(
        ("neuron.imp_lr", "neuron.imp_weight_decay", "recipe.imp_lr", "recipe.imp_weight_decay"),
        lambda c: c.neuron.imp_trainable, "neuron.imp_trainable", "neuron.imp_trainable=true",
    ),
    _Idle(("neuron.tau", "neuron.decay_input"), lambda c: c.neuron.name == "lif", "neuron.name", "neuron=lif or lif_imp"),
    _Idle(("neuron.retain",), lambda c: c.neuron.name == "leaky", "neuron.name", "neuron=leaky or leaky_imp"),
    _Idle(("neuron.v_reset",), lambda c: c.neuron.reset == "hard", "neuron.reset", "neuron.reset=hard"),
    _Idle(("dataset.integrate_by",), lambda c: not SETS[c.dataset.name].static, "dataset.name", "a data set of events"),
    _Idle(("dataset.channel_order",), lambda c: SETS[c.dataset.name].shape[0] == 3, "dataset.name", "colour images"),
    _Idle(
        ("dataset.split_seed",), lambda c: c.dataset.validation > 0 or c.dataset.train_subset > 0, "dataset.validation",
        "dataset.validation or dataset.train_subset above 0",
    ),
    _Idle(
        ("augment.randaugment_level", "augment.randaugment_std"), lambda c: c.augment.randaugment_ops > 0,
        "augment.randaugment_ops", "augment.randaugment_ops above 0",
    ),
    _Idle(
        ("augment.interpolation",), lambda c: c.augment.rrc_min_area > 0 or SETS[c.dataset.name].from_files, "augment.rrc_min_area",
        "augment.rrc_min_area above 0",
    ),
    _Idle(("augment.test_resize",), lambda c: SETS[c.dataset.name].from_files, "dataset.name", "dataset=imagenet1k or another set of image files"),
    _Idle(("augment.mix_prob",), lambda c: c.augment.mixup > 0 or c.augment.cutmix > 0, "augment.mixup", "augment.mixup or augment.cutmix above 0"),
    _Idle(("augment.cutmix_axes",), lambda c: c.augment.cutmix > 0, "augment.cutmix", "augment.cutmix above 0"),
    _Idle(("augment.cutmix_axes",), lambda c: not SETS[c.dataset.name].static, "dataset.name", "a data set of events"),
)  # fmt: skip


def idle(config: Config, overrides: Iterable[str]) -> dict[str, str]:
    """`{key: sentence}` of the keys that the user set by hand and that this configuration does not read."""
    found: dict[str, str] = {}
    given = given_keys(overrides)
    for rule in _IDLE:
        for name in rule.keys:
            if name in given and name not in found and not rule.read(config):
                room, _, last = rule.because.partition(".")
                if rule.because == "neuron.name" and name.split(".")[1] in _written("neuron", config.neuron.name):
                    continue
                value = getattr(getattr(config, room), last)
                shown = str(value).lower() if isinstance(value, bool) else value
                because = room if last == "name" else rule.because
                found[name] = (
                    f"{given[name]} has no effect with {because}={shown}; it needs {rule.needs}, or leave it out"
                )
    return found


@contextlib.contextmanager
def multirun_config(overrides: list[str]) -> Iterator[tuple[DictConfig, Any]]:
    """Hydra's configuration of a whole sweep, and the HydraContext that its launchers ask for."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import configure_log
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode
    from omegaconf.errors import OmegaConfBaseException

    with _hydra():
        hydra, before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        try:
            node = hydra.compose_config("train", [*overrides, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN)
            HydraConfig.instance().set_config(node)
            refuse_code(node)
        except (HydraException, OmegaConfBaseException) as error:
            HydraConfig.instance().cfg = before
            raise ConfigError(explain(error)) from None
        configure_log(node.hydra.hydra_logging, node.hydra.verbose)
        try:
            yield node, HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        finally:
            HydraConfig.instance().cfg = before


def refuse_code(node: DictConfig) -> None:
    """Raise ConfigError when `hydra.*` of a composed configuration names code to run that is not a launcher or sweeper of Hydra or its plugins.

    The project's own keys need no such check: nothing is ever instantiated from them, and the schema knows no `_target_`.
    """

    def walk(part: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(part, dict | list):
            for k, v in part.items() if isinstance(part, dict) else enumerate(part):
                if k in ("_target_", "()", "class") or (isinstance(v, str) and v.startswith(("ext://", "cfg://"))):
                    yield f"{path}.{k}", str(v)
                yield from walk(v, f"{path}.{k}")

    allowed = {  # Hydra makes objects from these and from nothing else
        "hydra.launcher._target_": ("hydra._internal.core_plugins.", "hydra_plugins."),
        "hydra.sweeper._target_": ("hydra._internal.core_plugins.", "hydra_plugins."),
        "hydra.sweeper.sampler._target_": ("optuna.samplers.",),
    }
    hydra = node.hydra
    with read_write(hydra), open_dict(hydra):
        hydra.runtime.output_dir = ""  # not known yet, and the log file's name asks for it
    for room in ("launcher", "sweeper", "callbacks", "job_logging", "hydra_logging"):
        part = OmegaConf.to_container(hydra[room], resolve=True) if hydra.get(room) else {}
        for path, value in walk(part, f"hydra.{room}"):
            known = ("logging.", "colorlog.", "ext://sys.std") if room.endswith("logging") else allowed.get(path, ())
            if not value.startswith(known):
                raise ConfigError(
                    f"{path}={value} would run code from the configuration; choose with hydra/launcher=, hydra/sweeper= or "
                    "hydra/job_logging= instead"
                )


def search_outside() -> None:
    """Let Hydra look for choices in the folders of packages from outside too, wherever it composes in this process."""
    if not outside.conf_dirs():
        return
    from hydra.core.plugins import Plugins

    from snn_repro.search_path import OutsideConf

    Plugins.instance().register(OutsideConf)


class _hydra:
    """Hydra's compose API for `conf/`, inside a running Hydra job or outside of one."""

    def __enter__(self):
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra

        if not CONF_DIR.is_dir():
            raise ConfigError(
                f"{CONF_DIR} is missing: install snn_repro again, from a wheel or with `pip install -e .`"
            )
        search_outside()
        self.saved = dict(GlobalHydra.instance().__dict__)
        GlobalHydra.instance().clear()
        initialize_config_dir(str(CONF_DIR), version_base="1.3")

    def __exit__(self, *_):
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        GlobalHydra.instance().__dict__.update(self.saved)


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """Expand multirun overrides (`neuron=if,if_imp`, `glob(...)`) into one list of overrides a job."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    with _hydra():
        loader = GlobalHydra.instance().hydra.config_loader
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
            jobs = BasicSweeper.split_arguments(parsed, None)[0]
        except HydraException as error:
            raise ConfigError(explain(error)) from None
        if not jobs:
            empty = [o.input_line for o in parsed if o.is_sweep_override() and not list(o.sweep_string_iterator())]
            known = ", ".join(choices("experiment")) or "none"
            raise ConfigError(f"{' and '.join(empty)} matches nothing, so the sweep is empty; experiments are: {known}")
    return jobs


# ---------------------------------------------------------------- checking


def checked(node: DictConfig | dict) -> Config:
    """Turn a composed configuration into a `Config`, or raise ConfigError with one sentence.

    The merge with a fresh schema also refuses keys that were added with `+key=`.
    """
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
        _set_own_apart(plain)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None
    check(config)
    return config


def _set_own_apart(plain: dict) -> None:
    """Move the keys that the schema does not have into `own`, each of which the choice must have."""
    for group, schema in OWN.items():
        part = plain.get(group)
        if isinstance(part, dict):
            names = {f.name for f in dataclasses.fields(schema)} - {"own"}
            own = {k: part.pop(k) for k in [*part] if k not in names}
            for name, value in own.items():
                _check_own(group, str(part.get("name")), str(name), value)
            part["own"] = own


def _check_own(group: str, choice: str, name: str, value: Any) -> None:
    full, known = f"{group}.{name}", own_keys(group, choice)
    if name not in known:
        owners = [other for other in choices(group) if name in own_keys(group, _name_in(conf_files(group)[other]))]
        if owners:
            raise ConfigError(f"{full} belongs to {group}={owners[0]}; leave it out for {group}={choice}")
        raise ConfigError(_unknown(full, [f"{group}.{k}" for k in known]))
    if not isinstance(value, bool | int | float | str | None) and not (
        isinstance(value, list) and all(isinstance(v, bool | int | float | str) for v in value)
    ):
        raise ConfigError(
            f"{full}={value} has the wrong type; it must be true or false, a number, a word or a list of these"
        )


def own_keys(group: str, name: str) -> dict[str, str]:
    """`{key: meaning}` of the settings that only this neuron, loss or network has: those in its yaml that the schema has
    not, with what the yaml says behind them, and those of its class where that was registered already."""
    schema = {f.name for f in dataclasses.fields(OWN[group])}
    known = {k: meaning for k, meaning in _written(group, name).items() if k not in schema}
    module, registry = {"neuron": NEURON_NAMES, "loss": LOSS_NAMES, "model": NETWORK_NAMES}[group].where
    things = getattr(sys.modules.get(module), registry, {})
    thing = dict.get(things, name)
    settings = getattr(thing, "settings", None) or getattr(thing, "options", {})
    return {k: s.help for k, s in settings.items() if k not in schema} | known


def _written(group: str, name: str) -> dict[str, str]:
    """`{key: comment}` of all yamls of a group that are about `name`: a choice and its twin with IMP, say."""
    found: dict[str, str] = {}
    for file in conf_files(group).values():
        if _name_in(file) == name:
            lines = re.findall(r"^(\w+):[^#\n]*(?:#[ ]*(.*))?$", file.read_text("utf-8"), re.MULTILINE)
            found |= {k: comment for k, comment in lines}
    return found


def _name_in(file: Path) -> str:
    found = re.search(r"^name: *([\w-]+)", file.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else ""


def check(config: Config) -> None:
    """Raise ConfigError for a value out of range, or values that do not go together; the types are right already."""
    for name, value, meta in _leaves(config):
        _check_range(name, value, meta)
    _check_lists(config)
    _check_paper_row(config)
    _check_combinations(config)


def _leaves(part: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict]]:
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        elif "own" not in f.metadata:
            yield prefix + f.name, value, f.metadata


def _check_range(name: str, value: Any, meta: dict) -> None:
    if value is None:
        return
    if meta["choices"] is not None and value not in meta["choices"]:
        raise ConfigError(
            f"{name}={value} is not allowed; choose one of: {', '.join(meta['choices'])}{nearest(value, meta['choices'])}"
        )
    bounds = [
        (meta["low"], lambda v, b: v >= b, "at least"),
        (meta["high"], lambda v, b: v <= b, "at most"),
        (meta["above"], lambda v, b: v > b, "greater than"),
        (meta["below"], lambda v, b: v < b, "less than"),
    ]
    if any(bound is not None and not ok(value, bound) for bound, ok, _ in bounds):  # false for nan as well
        allowed = " and ".join(f"{word} {bound}" for bound, _, word in bounds if bound is not None)
        unit = f" ({meta['unit']})" if meta["unit"] else ""
        raise ConfigError(f"{name}={value} is out of range; it must be {allowed}{unit}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value} is not allowed; it must be a finite number")


def _check_lists(c: Config) -> None:
    for word in c.recipe.no_decay:
        if word not in ("bias", "norm", "te"):
            raise ConfigError(
                f"recipe.no_decay has '{word}'; its words are: bias, norm, te (IMP has recipe.imp_weight_decay)"
            )
    init = c.neuron.imp_init
    if len(init) != 2 or init[0] > init[1]:
        raise ConfigError(f"neuron.imp_init={init} is not a range; give two numbers [low, high] with low <= high")
    if not re.fullmatch(r"[\w.,=+\[\]-]+", c.name):
        raise ConfigError(f"name={c.name} names a folder; use letters, digits and any of . , = + - _ [ ]")
    if not c.name.strip(".") or len(c.name.encode()) > 200:
        why = "is too long" if c.name.strip(".") else "would leave the folder of all runs"
        raise ConfigError(f"name={c.name} names a folder and {why}; use a name of up to 200 characters")


PAPER_TABLES = CONF_DIR.parent / "results" / "paper_tables.yaml"


def _check_paper_row(c: Config) -> None:
    if c.paper_row is None or not PAPER_TABLES.is_file():  # results/ is no part of a package that was built
        return
    known = re.findall(r"^- id: (\S+)$", PAPER_TABLES.read_text("utf-8"), re.MULTILINE)
    if c.paper_row not in known:
        raise ConfigError(
            f"paper_row={c.paper_row} is no row of results/{PAPER_TABLES.name}{nearest(c.paper_row, known)}; leave it out for "
            "a run that reproduces none"
        )


def _check_combinations(c: Config) -> None:
    facts = SETS[c.dataset.name]
    if not facts.resizable and c.dataset.frame_size not in (None, facts.shape[1]):
        raise ConfigError(
            f"dataset.frame_size={c.dataset.frame_size}: {c.dataset.name} has {facts.shape[1]} pixels and cannot be resized; "
            "leave dataset.frame_size out"
            + (", and choose model=vgg128 or small instead of vgg48" if c.model.name == "vgg48" else "")
        )
    for option, owner in (("epsilon", "tet_s"), ("lam", "tet"), ("phi", "tet")):
        value = getattr(c.loss, option)
        if value is not None and c.loss.name != owner and option not in _written("loss", c.loss.name):
            raise ConfigError(f"loss.{option}={value} has no meaning for loss={c.loss.name}; use loss={owner}")
    splits = facts.splits
    if c.dataset.split not in splits:
        raise ConfigError(
            f"dataset.split={c.dataset.split} is unknown for {c.dataset.name}; choose one of: {', '.join(splits)}{nearest(c.dataset.split, splits)}"
        )
    if c.model.name == "vgg48" and frame_shape(c)[1:] != (48, 48):
        size, name = "x".join(map(str, frame_shape(c)[1:])), c.dataset.name
        fix = (
            "choose model=vgg128 or small"
            if not facts.resizable
            else "set dataset.frame_size=48 or choose model=vgg128"
        )
        raise ConfigError(f"model=vgg48 is wired for 48x48 pixels and dataset={name} gives {size}; {fix}")
    if c.augment.label_smoothing > 0 and c.loss.name == "tet_s":
        raise ConfigError(
            f"augment.label_smoothing={c.augment.label_smoothing} would smooth twice with loss=tet_s; use loss.epsilon"
        )
    if c.augment.mixup == 0 and c.augment.cutmix == 0 and c.augment.mix_prob < 1:
        raise ConfigError(
            f"augment.mix_prob={c.augment.mix_prob} mixes nothing; set augment.mixup or augment.cutmix as well"
        )
    if c.recipe.warmup_epochs >= c.recipe.epochs and c.recipe.warmup_epochs > 0:
        raise ConfigError(
            f"recipe.warmup_epochs={c.recipe.warmup_epochs} leaves no epoch of recipe.epochs={c.recipe.epochs}; make it smaller"
        )
    if c.recipe.min_lr > c.recipe.lr:
        raise ConfigError(f"recipe.min_lr={c.recipe.min_lr} is above recipe.lr={c.recipe.lr}; make it smaller")
    if c.recipe.accumulate > c.recipe.batch_size:
        raise ConfigError(
            f"recipe.accumulate={c.recipe.accumulate} is more than recipe.batch_size={c.recipe.batch_size} can be split into"
        )
    static = facts.static
    for option in ("event_policy", "nda", "eventdrop"):
        if static and getattr(c.augment, option):
            raise ConfigError(f"augment.{option}=true works on event frames and dataset={c.dataset.name} has images")
    if c.augment.eventdrop and not facts.prepared:
        raise ConfigError(
            f"augment.eventdrop=true works on recordings and dataset={c.dataset.name} has only frames: set it to false"
        )
    for option in ("randaugment_ops", "rrc_min_area"):
        if not static and getattr(c.augment, option):
            raise ConfigError(
                f"augment.{option}={getattr(c.augment, option)} works on images and dataset={c.dataset.name} has event frames"
            )


def frame_shape(c: Config) -> tuple[int, int, int]:
    """[C, H, W] of one frame as the network sees it, known before any data is read."""
    return SETS[c.dataset.name].frame_shape(c.dataset.frame_size)


# ---------------------------------------------------------------- sentences


def explain(error: Exception) -> str:
    """One sentence for an error of Hydra or OmegaConf: the key, the value and what is allowed."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and choice in ("joblib", "submitit_slurm"):
            extra = "parallel" if choice == "joblib" else "slurm"
            return f"this launcher is a package of its own: pip install 'snn_repro[{extra}]'"
        known = error.options or list(choices(group))
        return f"{group}={choice} does not exist; choose one of: {', '.join(known)}{nearest(choice, known)}"
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    missing = re.search(r"Could not override '([^']+)'", text)
    if missing:
        return _unknown(missing.group(1))
    chain = [error, error.__cause__, error.__context__]
    for link in filter(None, chain):
        full = getattr(link, "full_key", None) or (re.search(r"full_key: (\S+)", str(link)) or [None, None])[1]
        message = str(link).splitlines()[0] if str(link) else ""
        value = re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", str(link))
        if value and full:
            return (
                f"{full}={value.group(1)} has the wrong type; it must be {_TYPES.get(value.group(2), value.group(2))}"
            )
        value = re.search(r"Value '(.*?)' is not a valid (\w+)", str(link))
        if value and full:
            return (
                f"{full}={value.group(1)} has the wrong type; it must be {_TYPES.get(value.group(2), value.group(2))}"
            )
        if full and ("not in" in message or "is not in struct" in message):
            return _unknown(full)
        if full and "missing mandatory value" in message:
            return f"{full} has no value; choose {full.split('.')[0]}= one of: {', '.join(choices(full.split('.')[0]))}"
        if full and ("non optional" in message or "not Optional" in message):
            return f"{full}=null is not allowed; give it a value"
    override = re.search(r"Error merging override (\S+)", text)
    detail = " ".join(str(error.__cause__ or text).split())
    return f"{override.group(1)}: {detail}" if override else detail


_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "bool": "true or false"}


def _unreadable(override: str) -> str:
    """The sentence for an override that is not in Hydra's grammar: with the words to type where quotes are what it lacks."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    name, equals, value = override.partition("=")
    with contextlib.suppress(HydraException):
        if equals and name and value:
            words = f"{name}={quoted(value)}"
            OverridesParser.create().parse_override(words)
            return f"cannot read the override '{override}': its value needs quotes, which the shell must not take off: type {shlex.quote(words)}"
    return f"cannot read the override '{override}': write key=value"


def _unknown(full: str, more: Iterable[str] = ()) -> str:
    if full in GROUPS:
        return f"'{full}' is a choice of files: write {full}=NAME with one of: {', '.join(choices(full))}"
    known = [*keys(), *GROUPS, *more]
    guess = nearest(full, known)
    if not guess:  # the last part may be right and the room wrong
        ends = [k for k in known if k.split(".")[-1] == full.split(".")[-1]]
        guess = f"; did you mean '{ends[0]}'?" if ends else "; `python -m snn_repro.train --help` lists what there is"
    return f"unknown key '{full}'{guess}"


def keys(part: type = Config, prefix: str = "") -> dict[str, dict]:
    """Every key of the schema with its metadata (help, unit, range), as `{"recipe.lr": {...}}`."""
    found = {}
    for f in dataclasses.fields(part):
        if dataclasses.is_dataclass(f.type):
            found |= keys(f.type, f"{prefix}{f.name}.")
        elif f.name != "run_dir" and "own" not in f.metadata:
            found[prefix + f.name] = dict(f.metadata)
    return found


def conf_files(group: str) -> dict[str, Path]:
    """`{choice: its file}` of a config group, in alphabetical order, those of packages from outside among them.

    Raises ConfigError where two have the same choice.
    """
    found: dict[str, Path] = {}
    for folder in (CONF_DIR, *outside.conf_dirs()):
        for file in (folder / group).glob("*.yaml"):
            if found.setdefault(file.stem, file) != file:
                raise ConfigError(
                    f"{file} would be {group}={file.stem}, which is {found[file.stem]} already; rename it"
                )
    return dict(sorted(found.items()))


def choices(group: str) -> dict[str, str]:
    """`{choice: first comment line}` of a config group, in alphabetical order."""
    lines = {name: file.read_text("utf-8").splitlines() for name, file in conf_files(group).items()}
    return {
        k: next((line[1:].strip() for line in v if line.startswith("# ") and "@package" not in line), "")
        for k, v in lines.items()
    }


def help_text() -> str:
    """What `--help` prints: every choice with one line, then every key with its meaning."""
    out = ["snn_repro trains one spiking network: dataset x model x neuron x loss x recipe, or one row of the paper.", "",
           "  python -m snn_repro.train [GROUP=CHOICE ...] [KEY=VALUE ...]      one run",
           "  python -m snn_repro.train -m GROUP=A,B seed=0,1,2                 a sweep",
           "  python -m snn_repro.train --cfg job [...]                         show the configuration, run nothing", ""]  # fmt: skip
    for group in GROUPS:
        found = choices(group)
        if found:
            width = max(map(len, found))
            out += [f"{group}=", *(f"  {name:<{width}}  {line}" for name, line in found.items()), ""]
    out.append("keys")
    mine = {
        f"{group}.{k}": f"{group}={choice}: {meaning}".rstrip(": ")
        for group in OWN
        for choice, file in conf_files(group).items()
        for k, meaning in own_keys(group, _name_in(file)).items()
    }
    for name, meta in keys().items():
        names = meta["choices"]
        names = names.ours() if isinstance(names, Names) else dict.keys(names) if isinstance(names, dict) else names
        allowed = f" [{' | '.join(names)}]" if names else ""
        unit = f" ({meta['unit']})" if meta["unit"] else ""
        out.append(f"  {name:<30} {meta['help']}{unit}{allowed}")
    out += [f"  {name:<30} {meaning}" for name, meaning in mine.items()]
    out += [
        "",
        "Hydra's own flags: python -m snn_repro.train --hydra-help; versions: --version; tab completion: README",
    ]
    return "\n".join(out)


# ---------------------------------------------------------------- identity


def to_dict(config: Config) -> dict:
    """The whole configuration as plain containers, in the form of the yamls: `own` settings among the others."""
    plain = dataclasses.asdict(config)
    for group in OWN:
        plain[group] |= plain[group].pop("own")
    return plain


def hashed(config: Config | dict) -> dict[str, Any]:
    """Flat `{"recipe.lr": 0.1, ...}` of every key that can change a number in the result.

    Two configurations without a key of ADDED, or with its old value, are the same. `fidelity=extended` says only that no
    code was released that does what the row does, so it counts as `published`.
    """
    flat = {}

    def walk(part: dict, prefix: str) -> None:
        for k, v in part.items():
            full = prefix + k
            if full in NOT_HASHED or (full in ADDED and v == ADDED[full]):
                continue
            if isinstance(v, dict):
                walk(v, full + ".")
            else:
                flat[full] = v

    walk(to_dict(config) if dataclasses.is_dataclass(config) else config, "")
    if flat.get("fidelity") == "extended":
        flat["fidelity"] = "published"
    return flat


def config_hash(config: Config | dict, without: tuple[str, ...] = ()) -> str:
    """SHA-256 (first 16 hex digits) of `hashed(config)`, optionally without some keys such as the seed."""
    flat = {k: v for k, v in hashed(config).items() if k not in without}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def differing(a: Config | dict, b: Config | dict) -> list[str]:
    """`["recipe.lr: 0.1 -> 0.2", ...]`: the keys in which two configurations differ, of those that are hashed."""
    fa, fb = ADDED | hashed(a), ADDED | hashed(b)
    return [f"{k}: {fa.get(k)} -> {fb.get(k)}" for k in sorted(fa.keys() | fb.keys()) if fa.get(k) != fb.get(k)]
