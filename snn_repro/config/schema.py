"""The keys of a configuration that all choices share: name, type, unit, meaning and range of each, declared once.

What only one neuron, loss, network, data set or augmentation has is a `Setting` beside its class, found by the registries in OWN.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snn_repro.errors import UserError
from snn_repro.kernels import KERNELS
from snn_repro.registry import (
    AUGMENTATIONS,
    INITIAL_STATES,
    LOSSES,
    MODELS,
    NEURONS,
    NORMS,
    OPTIMIZERS,
    SCHEDULES,
    SETS,
    SURROGATES,
    Registry,
)
from snn_repro.settings import Setting

_PACKAGE = Path(__file__).resolve().parents[1]
# beside the package in a clone, inside of it in a wheel
CONF_DIR = next(
    (d for d in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if (d / "train.yaml").is_file()), _PACKAGE.parent / "conf"
)
PAPER_TABLES = CONF_DIR.parent / "results" / "paper_tables.yaml"
GROUPS = ("dataset", "model", "neuron", "loss", "recipe", "experiment", "fidelity", "logger", "debug")
OWN: dict[str, tuple[Registry, ...]] = {
    "dataset": (SETS,), "model": (MODELS, NORMS), "neuron": (NEURONS, SURROGATES, INITIAL_STATES), "loss": (LOSSES,),
    "recipe": (OPTIMIZERS, SCHEDULES), "augment": (AUGMENTATIONS,),
}  # fmt: skip
"""groups with the settings of what they choose"""
MISSING = "???"  # how OmegaConf calls a value that has to be chosen


class _Devices(tuple):
    """The words for a device; cuda:N stands for all numbers."""

    def __contains__(self, word: object) -> bool:
        return word in (*self[:-1],) or bool(re.fullmatch(r"cuda:\d+", str(word)))


DEVICES = _Devices(("auto", "cpu", "cuda", "cuda:N"))


class ConfigError(UserError):
    """A key, value or combination that the configuration does not allow."""


def key(default: Any, help: str, **more: Any) -> Any:
    """A field of the schema with its Setting (unit, low, high, above, below, choices)."""
    metadata = {"setting": Setting(default, help, **more)}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Chosen:
    """A part with the settings of what it chooses, or of all augmentations, in `own`: keys and attributes as the shared ones are."""

    own: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["own"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name}") from None


@dataclass
class DatasetConfig(Chosen):
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
        "number", "how events become T frames: equal numbers of events, equal time, or as BrainCog does: of equal time without the rest, cut to what the events reach and resized from corner to corner",
        choices=("number", "time", "braincog"),
    )  # fmt: skip
    channel_order: str = key(
        "rgb", "order of colour channels; the paper's CIFAR code feeds bgr", choices=("rgb", "bgr")
    )
    workers: int | None = key(
        None, "loader processes for data sets that decode files; null: on a GPU one a core of the job, else none", low=0
    )
    on_device: Any = key(
        "auto", "a copy of the data set in the device's memory, batches made there; auto: on a GPU where it takes a quarter at most of what is free",
        choices=("auto", True, False),
    )  # fmt: skip
    ahead: Any = key(
        "auto", "a thread prepares batches during the step before; auto: on a GPU", choices=("auto", True, False)
    )
    verify: str = key(
        "first_read",
        "hold prepared frames against their checksums when a run first reads them, or not at all",
        choices=("first_read", "off"),
    )
    found: dict[str, Any] | None = None  # no key: what a run found in own data, kept for all that comes after training


@dataclass
class ModelConfig(Chosen):
    name: str = key(MISSING, "network", choices=MODELS)
    checkpointing: str = key(
        "off", "what the backward pass runs again to save memory: norms and their neurons, or whole blocks",
        choices=("off", "norms", "blocks"),
    )  # fmt: skip
    weights: str | None = key(
        None,
        "initial weights, ours, torchvision's or a SEW-ResNet of its authors: a path, or a file name in data_dir, data_dir/weights or torch hub; or the folder of a run, whose last epoch it then starts from",
    )


@dataclass
class NeuronConfig(Chosen):
    name: str = key(MISSING, "what the neuron is called in snn_repro/neurons/", choices=NEURONS)
    imp: bool = key(False, "learnable initial membrane potential, one value a neuron (the paper's IMP)")
    imp_lr: float = key(1.0, "IMP's learning rate as a factor of the recipe's", low=0)
    imp_weight_decay: float | None = key(0.0, "IMP's weight decay; null uses the recipe's", low=0)
    initial_layers: list[int] | None = key(
        None,
        "spiking layers that start as neuron.initial says, [1,3] say, counted from the input; the others start at 0; null: all",
    )


@dataclass
class LossConfig(Chosen):
    name: str = key(MISSING, "training objective and readout", choices=LOSSES)


@dataclass
class RecipeConfig(Chosen):
    epochs: int = key(10, "passes over the training set", low=1)
    batch_size: int = key(64, "training samples a step, over all processes together", low=1)
    eval_batch_size: int = key(256, "samples a step in evaluation", low=1)
    accumulate: int = key(
        1, "split a batch into this many parts to fit memory; the step stays one; processes share the parts", low=1
    )
    optimizer: str = key("sgd", "optimiser", choices=OPTIMIZERS)
    lr: float = key(0.1, "learning rate", above=0.0)
    momentum: float = key(0.9, "sgd: momentum", low=0.0, below=1.0)
    nesterov: bool = key(False, "sgd: Nesterov momentum")
    weight_decay: float = key(0.0, "weight decay", low=0.0)
    no_decay: list[str] = key([], "parameters without weight decay, any of: bias norm te")
    eps: float = key(1e-8, "adam, adamw, lamb: epsilon", above=0.0)
    schedule: str = key("cosine", "learning rate after warm-up", choices=SCHEDULES)
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
    class_balanced: bool = key(False, "draw training samples with replacement, all classes equally often")
    repeated_augmentation: int = key(
        1, "copies of an image in one batch; an epoch then has 1/copies of the images", low=1
    )
    sync_bn: bool = key(
        False, "several processes: batch norm over the whole batch; false: over each process's share, as torch does"
    )


@dataclass
class AugmentConfig(Chosen):
    """The settings of all augmentations together: any of them may be turned on."""

    def of(self, cls: Any) -> dict[str, Any]:
        """The values of an augmentation's settings."""
        return {key: self.own.get(key, setting.default) for key, setting in cls.settings.items()}

    def classes(self) -> list[Any]:
        """The augmentations that there are; packages from outside are asked only where a key is none of ours."""
        ours = [AUGMENTATIONS[name] for name in AUGMENTATIONS.ours()]
        return ours if self.own.keys() <= {k for cls in ours for k in cls.settings} else list(AUGMENTATIONS.values())

    def turned_on(self, kind: type = object) -> list[Any]:
        """The augmentations of a kind that are turned on, in order."""
        found = [cls for cls in self.classes() if issubclass(cls, kind) and cls.is_on(self.of(cls))]
        return sorted(found, key=lambda cls: (cls.order, cls.name))


@dataclass
class LoggerConfig:
    to: dict[str, Any] = key({}, "where a run is logged; choose with logger=NAME, or several with logger=[NAME,NAME]")
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
    timesteps: int = key("${dataset.timesteps}", "simulation steps T", low=1)
    data_dir: str | None = key(None, "folder with the public data sets, as downloaded; only ever read")
    cache_dir: str | None = key(
        None, "folder for prepared frames (scripts/prepare_data.py); digits_dvs keeps its frames there too"
    )
    resume: str = key(
        "auto", "auto continues an unfinished run of this configuration; never starts again", choices=("auto", "never")
    )
    force: bool = key(False, "run again although a finished result of this configuration exists")
    skip_finished: bool = key(True, "sweeps leave out what is finished; false trains it again and continues the rest")
    device: str = key("auto", "auto is cuda where there is one; cuda:1 is the second GPU", choices=DEVICES)
    threads: int = key(
        0, "CPU threads; 0 is 1 for the small model (faster there), else torch's default; sums are rounded in another order",
        low=0, high=4096,
    )  # fmt: skip
    dry_run: bool = key(
        False, "build everything, check data and memory, time a few steps, print layers, operations and hours; no run"
    )
    energy: bool | None = key(
        None,
        "synaptic operations and energy (spikingjelly's counters) in result.json; null: where they cost under 2 % of the run",
    )
    neurobench: bool = key(False, "write neurobench.json: NeuroBench's metrics, counted over the test part")
    kernels: str = key(
        "auto", "backends of all layers, equal up to rounding: off is PyTorch alone; dense, sparse are about convolutions",
        choices=tuple(KERNELS),
    )  # fmt: skip
    compile: bool | str = key(
        False, "torch.compile the network (default, as true), or with CUDA graphs too; on a CPU it needs a C++ compiler",
        choices=(False, True, "default", "reduce-overhead"),
    )  # fmt: skip
    deterministic: bool = key(True, "ask torch for deterministic algorithms; CUDA may be slower")
    cudnn_benchmark: str = key(
        "auto", "CUDA: cuDNN tries its algorithms for each size and takes the fastest; auto: where not deterministic",
        choices=("auto", "always", "never"),
    )  # fmt: skip
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    neuron: NeuronConfig = field(default_factory=NeuronConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    runs_per_gpu: int = key(1, "hydra/launcher=gpus: runs at the same time on each GPU", low=1)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    run_dir: str | None = key(None, "set by Hydra's hydra.run.dir; not a key to set")
