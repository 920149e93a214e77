"""The keys of a configuration that all choices share, declared once, and what makes two configurations the same.

What only one neuron, loss, network, data set or augmentation has is a `Setting` beside its class, found by the registries in OWN.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
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
    validation: float = key(0.0, "part of the training set held out for model selection", low=0.0, below=1.0)
    split: str = key("official", "named train/test split (snn_repro/data/sets/)")
    split_seed: int = key(0, "seed of the validation part; independent of the run's seed", low=0)
    train_subset: int = key(0, "training samples to keep, stratified and seeded; 0: all", unit="samples", low=0)
    frame_size: int | None = key(None, "height and width to resize frames to; null: native", unit="pixels", low=4)
    integrate_by: str = key(
        "number", "how events become T frames: equal numbers, equal time, or as BrainCog's code does",
        choices=("number", "time", "braincog"),
    )  # fmt: skip
    channel_order: str = key("rgb", "colour channels; the paper's CIFAR code feeds bgr", choices=("rgb", "bgr"))
    workers: int | None = key(None, "loader processes that decode files; null: on a GPU one a core, else none", low=0)
    on_device: Any = key(
        "auto", "the data set in the device's memory; auto: on a GPU, up to a quarter of what is free",
        choices=("auto", True, False),
    )  # fmt: skip
    ahead: Any = key("auto", "a thread prepares batches ahead; auto: on a GPU", choices=("auto", True, False))
    verify: str = key(
        "first_read", "check prepared frames' sums at the first read, or not", choices=("first_read", "off")
    )
    found: dict[str, Any] | None = None  # no key: what a run found in own data, kept for all that comes after training


@dataclass
class ModelConfig(Chosen):
    name: str = key(MISSING, "network", choices=MODELS)
    checkpointing: str = key("off", "what runs again backward to save memory", choices=("off", "norms", "blocks"))
    weights: str | None = key(
        None, "initial weights: a path, a file name in data_dir, data_dir/weights or torch hub, or the folder of a run"
    )


@dataclass
class NeuronConfig(Chosen):
    name: str = key(MISSING, "what the neuron is called in snn_repro/neurons/", choices=NEURONS)
    imp: bool = key(False, "learnable initial membrane potential, one value a neuron (the paper's IMP)")
    imp_lr: float = key(1.0, "IMP's learning rate as a factor of the recipe's", low=0)
    imp_weight_decay: float | None = key(0.0, "IMP's weight decay; null uses the recipe's", low=0)
    initial_layers: list[int] | None = key(None, "spiking layers, from 1, that neuron.initial is for; null: all")


@dataclass
class LossConfig(Chosen):
    name: str = key(MISSING, "training objective and readout", choices=LOSSES)


@dataclass
class RecipeConfig(Chosen):
    epochs: int = key(10, "passes over the training set", low=1)
    batch_size: int = key(64, "training samples a step, over all processes together", low=1)
    eval_batch_size: int = key(256, "samples a step in evaluation", low=1)
    accumulate: int = key(1, "parts of a batch, to fit memory; processes share them; the step stays one", low=1)
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
    amp: str = key("auto", "mixed precision: auto is fp16 on CUDA, else off", choices=("auto", "off", "fp16", "bf16"))
    ema_decay: float = key(0.0, "evaluate a moving average of the weights; 0 is off", low=0.0, below=1.0)
    drop_last: bool = key(False, "leave out a last, smaller training batch")
    class_balanced: bool = key(False, "draw training samples with replacement, all classes equally often")
    repeated_augmentation: int = key(1, "copies of an image in a batch; an epoch has 1/copies of the images", low=1)
    sync_bn: bool = key(False, "several processes: batch norm over the whole batch, not each process's share")


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
    mode: str = key("offline", "Weights & Biases; WANDB_MODE off wins", choices=("online", "offline", "disabled"))
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
    processes: int = key(1, "hydra/launcher=slurm: processes a run, as many as GPUs to train on several", low=1)
    cpus: int = key(4, "hydra/launcher=slurm: CPU cores a process", low=1)
    memory: int = key(16, "hydra/launcher=slurm: memory a run", unit="GB", low=1)
    time: int = key(720, "hydra/launcher=slurm: time limit; then it is continued", unit="minutes", low=1)
    notice: int = key(120, "hydra/launcher=slurm: save and requeue before the limit", unit="seconds", low=10)
    requeues: int = key(100, "hydra/launcher=slurm: how often a run may meet its time limit", low=0)
    parallel: int = key(256, "hydra/launcher=slurm: runs at the same time", low=1)


@dataclass
class DebugConfig:
    max_steps: int = key(0, "training steps an epoch; 0 is all", low=0)
    max_eval_batches: int = key(0, "evaluation batches; 0 is all", low=0)


@dataclass
class Config:
    name: str = key(MISSING, "the row: names the run's folder, its line in tables and its W&B group")
    paper_row: str | None = key(None, "id of the row of the paper's tables that this run reproduces")
    fidelity: str = key(
        "published", "the released code's settings, those where none was released, or the paper's equations",
        choices=("published", "extended", "described"),
    )  # fmt: skip
    baselines: list[str] = key([], "rows to measure the gain against: without all that this adds, then without a part")
    unspecified: list[str] = key([], "keys that no source of the paper settles; the row's file says why we chose so")
    caveats: list[str] = key([], "why a number of this row cannot stand beside the paper's as it is, in words")
    seed: int = key(0, "seed of weights, order and augmentation", low=0, below=2**31)
    timesteps: int = key("${dataset.timesteps}", "simulation steps T", low=1)
    data_dir: str | None = key(None, "folder with the public data sets, as downloaded; only ever read")
    cache_dir: str | None = key(None, "folder for prepared frames (scripts/prepare_data.py)")
    resume: str = key("auto", "auto continues an unfinished run; never starts again", choices=("auto", "never"))
    force: bool = key(False, "run again although a finished result of this configuration exists")
    skip_finished: bool = key(True, "sweeps leave out what is finished; false trains it again and continues the rest")
    device: str = key("auto", "auto is cuda where there is one; cuda:1 is the second GPU", choices=DEVICES)
    threads: int = key(
        0, "CPU threads; 0: 1 for the small model, else torch's default; moves roundings", low=0, high=4096
    )
    dry_run: bool = key(False, "check data and memory, time a few steps, print layers, operations and hours; no run")
    energy: bool | None = key(None, "synaptic operations and energy in result.json; null: where they cost under 2 %")
    neurobench: bool = key(False, "write neurobench.json: NeuroBench's metrics, counted over the test part")
    kernels: str = key("auto", "backends of all layers, equal up to rounding; off is PyTorch", choices=tuple(KERNELS))
    compile: bool | str = key(
        False, "torch.compile the network (default, as true), or with CUDA graphs too; on a CPU it needs a C++ compiler",
        choices=(False, True, "default", "reduce-overhead"),
    )  # fmt: skip
    deterministic: bool = key(True, "ask torch for deterministic algorithms; CUDA may be slower")
    cudnn_benchmark: str = key("auto", "CUDA: cuDNN tries its algorithms", choices=("auto", "always", "never"))
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


# ---------------------------------------------------------------- identity

# Keys that say where or how a run happens. Some still move numbers by rounding (threads, device, backends, compile), or
# with the number of processes (sync_bn): result.json says what they were, and tables show where runs differ in it.
NOT_HASHED = (
    "run_dir", "data_dir", "cache_dir", "resume", "force", "dry_run", "device", "threads", "logger", "energy", "neurobench",
    "skip_finished", "slurm", "runs_per_gpu",
    "dataset.found", "dataset.workers", "dataset.on_device", "dataset.ahead", "dataset.verify", "debug.profile", "baselines", "unspecified", "caveats",
    "model.conv_backend", "model.checkpointing", "neuron.backend", "kernels", "compile", "cudnn_benchmark",
    "recipe.sync_bn",  # matters with several processes alone, and their number is no key either
)  # fmt: skip

# Of these, keys that runs once had, the first two of which kernels= took over: stored configurations may have them, commands not.
FORMER_KERNELS = ("model.conv_backend", "neuron.backend")
FORMER = (*FORMER_KERNELS, "debug.profile")

# Keys that came after results existed, with the value that stands for what was done before: with this value a key stays
# out of the hash, so that earlier results go on belonging to their configuration.
ADDED: dict[str, Any] = {
    "neuron.decay_input": True, "augment.eventdrop_area": "rectangle", "augment.eventmix": 0.0, "augment.eventmix_prob": 1.0,
    "neuron.initial": "zero", "neuron.initial_value": 0.5, "neuron.initial_layers": None, "augment.rpg_drop": 0.0, "augment.rpg_mix": 0.0, "augment.rpg_relevance": "slrp", "model.stem_pool": "avg",
    "dataset.decoder": "pil", "recipe.class_balanced": False, "model.conv_init": "torch", "model.pool": "max", "model.unpooled": 0,
    "model.spiking_output": True,
}  # fmt: skip

# Keys that are no more, or only of some choices now. Every configuration had them, with these values where nothing else was
# said (or that of another key), and they stay in the hash for the same reason.
RENAMED = {"recipe.imp_lr": "neuron.imp_lr", "recipe.imp_weight_decay": "neuron.imp_weight_decay"}
FORMERLY = {
    "neuron.tau": 2.0, "neuron.retain": 0.25, "loss.epsilon": None, "loss.lam": None, "loss.phi": None, "model.norm": None,
    "model.zero_init_residual": None, "model.head_init": None, "model.dropout": None,
}  # fmt: skip


def to_dict(config: Config) -> dict:
    """The whole configuration as plain containers, in the form of the yamls: own settings among the others."""
    plain = asdict(config)
    for group in OWN:
        plain[group] |= plain[group].pop("own")
    return plain


def _flat(part: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for k, v in part.items():
        if isinstance(v, dict) and prefix + k not in NOT_HASHED:
            yield from _flat(v, f"{prefix}{k}.")
        else:
            yield prefix + k, v


def hashed(config: Config | dict) -> dict[str, Any]:
    """Flat `{"recipe.lr": 0.1, ...}` of every key that can change a number in the result.

    Two configurations without a key of ADDED, or with its old value, are the same. `fidelity=extended` says only that no
    code was released that does what the row does, so it counts as `published`.
    """
    plain = to_dict(config) if isinstance(config, Config) else config
    flat = {k: v for k, v in _flat(plain) if k not in NOT_HASHED and (k not in ADDED or v != ADDED[k])}
    if flat.get("neuron.imp") and flat.get("neuron.initial") == "imp":
        del flat["neuron.initial"]  # neuron.imp says it
    flat = FORMERLY | flat
    for former, now in RENAMED.items():
        if now in flat:
            flat.setdefault(former, flat[now])
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
    changed = {k: f"{fa.get(k)} -> {fb.get(k)}" for k in sorted(fa.keys() | fb.keys()) if fa.get(k) != fb.get(k)}
    return [f"{k}: {values}" for k, values in changed.items() if changed.get(RENAMED.get(k, "")) != values]
