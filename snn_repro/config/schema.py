"""Schema of the configuration: all shared keys, and the hash that identifies it.

Keys of one neuron, loss, network, data set or augmentation are a `Setting` beside its class, found by the registries in
OWN.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from snn_repro import registry as r
from snn_repro.errors import UserError
from snn_repro.kernels import KERNELS
from snn_repro.settings import Setting

_PACKAGE = Path(__file__).resolve().parents[1]
# beside the package in a clone, inside it in a wheel
CONF_DIR = next(
    (d for d in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if (d / "train.yaml").is_file()), _PACKAGE.parent / "conf"
)
PAPER_TABLES = CONF_DIR.parent / "results" / "paper_tables.yaml"
GROUPS = ("dataset", "model", "neuron", "loss", "recipe", "experiment", "fidelity", "logger", "debug")
# registries whose classes add settings to a group
OWN: dict[str, tuple[r.Registry, ...]] = {
    "dataset": (r.SETS,), "model": (r.MODELS, r.NORMS, r.INITS), "neuron": (r.NEURONS, r.SURROGATES, r.INITIAL_STATES),
    "loss": (r.LOSSES,), "recipe": (r.OPTIMIZERS, r.SCHEDULES), "augment": (r.AUGMENTATIONS,),
}  # fmt: skip
MISSING = "???"  # OmegaConf's mandatory value


class _Devices(tuple):
    """The device names; cuda:N stands for all indices."""

    def __contains__(self, word: object) -> bool:
        return word in (*self[:-1],) or bool(re.fullmatch(r"cuda:\d+", str(word)))


DEVICES = _Devices(("auto", "cpu", "cuda", "cuda:N"))


class ConfigError(UserError):
    """Invalid key, value or combination in a configuration."""


def key(default: Any, help: str, **more: Any) -> Any:
    """A schema field with its Setting (unit, low, high, above, below, choices)."""
    value: Any = dict(default_factory=default.copy) if isinstance(default, list | dict) else dict(default=default)
    return field(**value, metadata={"setting": Setting(default, help, **more)})


@dataclass
class Chosen:
    """A group that stores its choice's settings in `own`, readable as attributes."""

    own: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["own"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name}") from None


@dataclass
class DatasetConfig(Chosen):
    """Keys `dataset.*`."""

    name: str = key(MISSING, "data set", choices=r.SETS)
    timesteps: int = key(4, "usual number of time steps T; default of the top-level `timesteps`", low=1)
    validation: float = key(0.0, "fraction of the training set held out for validation", low=0.0, below=1.0)
    split: str = key("official", "named train/test split (snn_repro/data/sets/)")
    split_seed: int = key(0, "seed of the validation split; independent of `seed`", low=0)
    train_subset: int = key(0, "training samples to use, stratified by class; 0: all", unit="samples", low=0)
    frame_size: int | None = key(None, "resize frames to this height and width; null: native", unit="pixels", low=4)
    integrate_by: str = key(
        "number", "integrate events into T frames: by equal count, by equal time, or like BrainCog's code",
        choices=("number", "time", "braincog"),
    )  # fmt: skip
    channel_order: str = key("rgb", "colour channel order; the paper's CIFAR code uses bgr", choices=("rgb", "bgr"))
    workers: int | None = key(None, "worker processes that decode files; null: one per core on a GPU, else 0", low=0)
    on_device: Any = key(
        "auto", "keep the data set in device memory; auto: on a GPU, up to a quarter of its free memory",
        choices=("auto", True, False),
    )  # fmt: skip
    ahead: Any = key("auto", "prefetch batches in a thread; auto: on a GPU", choices=("auto", True, False))
    verify: str = key("first_read", "verify checksums of prepared frames", choices=("first_read", "off"))
    found: dict[str, Any] | None = None  # not a key: facts of own data, found by the run and recorded


@dataclass
class ModelConfig(Chosen):
    """Keys `model.*`."""

    name: str = key(MISSING, "network", choices=r.MODELS)
    checkpointing: str = key("off", "recompute in backward to save memory", choices=("off", "norms", "blocks"))
    weights: str | None = key(None, "initial weights: path, run folder, or file in data_dir[/weights] or torch hub")


@dataclass
class NeuronConfig(Chosen):
    """Keys `neuron.*`."""

    name: str = key(MISSING, "neuron family", choices=r.NEURONS)
    imp: bool = key(False, "learnable initial membrane potential, one value per neuron (the paper's IMP)")
    imp_lr: float = key(1.0, "learning rate of IMP, as a factor of recipe.lr", low=0)
    imp_weight_decay: float | None = key(0.0, "weight decay of IMP; null: recipe.weight_decay", low=0)
    initial_layers: list[int] | None = key(None, "spiking layers (from 1) that use neuron.initial; null: all")


@dataclass
class LossConfig(Chosen):
    """Keys `loss.*`."""

    name: str = key(MISSING, "training objective and readout", choices=r.LOSSES)


@dataclass
class RecipeConfig(Chosen):
    """Keys `recipe.*`: optimisation and batches."""

    epochs: int = key(10, "training epochs", low=1)
    batch_size: int = key(64, "training batch size, total of all processes", low=1)
    eval_batch_size: int = key(256, "evaluation batch size", low=1)
    accumulate: int = key(1, "gradient accumulation: parts of a batch, divided among processes", low=1)
    optimizer: str = key("sgd", "optimiser", choices=r.OPTIMIZERS)
    lr: float = key(0.1, "learning rate", above=0.0)
    lr_per: int | None = key(None, "scale lr by batch_size / lr_per, for example 256; null: off", unit="samples", low=1)
    momentum: float = key(0.9, "sgd: momentum", low=0.0, below=1.0)
    nesterov: bool = key(False, "sgd: Nesterov momentum")
    weight_decay: float = key(0.0, "weight decay", low=0.0)
    no_decay: list[str] = key([], "parameters without weight decay, any of: bias, norm, te")
    eps: float = key(1e-8, "adam, adamw, lamb: epsilon", above=0.0)
    schedule: str = key("cosine", "learning-rate schedule after warm-up", choices=r.SCHEDULES)
    min_lr: float = key(0.0, "cosine: final learning rate", low=0.0)
    step_epochs: int = key(30, "step: epochs between drops", low=1)
    step_gamma: float = key(0.1, "step: factor of each drop", above=0.0, high=1.0)
    warmup_epochs: int = key(0, "linear warm-up, per iteration", unit="epochs", low=0)
    warmup_factor: float = key(1e-4, "initial learning rate of the warm-up, as a factor of lr", above=0.0, high=1.0)
    clip_norm: float = key(0.0, "gradient clipping by global norm; 0: off", low=0.0)
    amp: str = key("auto", "mixed precision; auto: fp16 on CUDA, else off", choices=("auto", "off", "fp16", "bf16"))
    ema_decay: float = key(0.0, "decay of the weight average (EMA) that is evaluated; 0: off", low=0.0, below=1.0)
    drop_last: bool = key(False, "drop the last, smaller training batch")
    class_balanced: bool = key(False, "sample with replacement, all classes equally often")
    repeated_augmentation: int = key(1, "copies of each image; an epoch has 1/copies of the images", low=1)
    sync_bn: bool = key(False, "batch norm statistics over the batches of all processes")

    def scaled(self) -> "RecipeConfig":
        """The recipe with its learning rate scaled to the batch size; min_lr is not scaled."""
        return self if self.lr_per is None else replace(self, lr=self.lr * self.batch_size / self.lr_per, lr_per=None)


@dataclass
class AugmentConfig(Chosen):
    """Keys `augment.*`: the settings of all augmentations."""

    def of(self, cls: Any) -> dict[str, Any]:
        """Values of an augmentation's settings."""
        return {key: self.own.get(key, setting.default) for key, setting in cls.settings.items()}

    def classes(self) -> list[Any]:
        """All augmentations; plug-ins are imported only for keys that are not ours."""
        ours = [r.AUGMENTATIONS[name] for name in r.AUGMENTATIONS.ours()]
        return ours if self.own.keys() <= {k for cls in ours for k in cls.settings} else list(r.AUGMENTATIONS.values())

    def turned_on(self, kind: type = object) -> list[Any]:
        """Active augmentations that are subclasses of `kind`, in order."""
        active = [cls for cls in self.classes() if issubclass(cls, kind) and any(map(self.of(cls).get, cls.switches))]
        return sorted(active, key=lambda cls: (cls.order, cls.name))


@dataclass
class LoggerConfig:
    """Keys `logger.*`."""

    to: dict[str, Any] = key({}, "loggers; choose with logger=NAME or logger=[NAME,NAME]")
    mode: str = key("offline", "W&B mode; WANDB_MODE can only restrict it", choices=("online", "offline", "disabled"))
    project: str = key("snn_repro", "project in W&B or trackio")
    entity: str | None = key(None, "W&B team or user; null: the account's default")
    tags: list[str] = key([], "W&B tags besides data set, model, neuron and loss")


@dataclass
class SlurmConfig:
    """Keys `slurm.*`: resources of each run with `hydra/launcher=slurm`; see docs/cluster.md."""

    partition: str | None = key(None, "hydra/launcher=slurm: partition; null: the cluster's default")
    account: str | None = key(None, "hydra/launcher=slurm: account to charge; null: the user's default")
    qos: str | None = key(None, "hydra/launcher=slurm: quality of service")
    constraint: str | None = key(None, "hydra/launcher=slurm: node feature, such as a GPU type")
    gpus: int = key(1, "hydra/launcher=slurm: GPUs per run", low=0)
    processes: int = key(1, "hydra/launcher=slurm: processes per run; for several GPUs, one each", low=1)
    cpus: int = key(4, "hydra/launcher=slurm: CPU cores per process", low=1)
    memory: int = key(16, "hydra/launcher=slurm: memory per run", unit="GB", low=1)
    time: int = key(720, "hydra/launcher=slurm: time limit, after which the run is requeued", unit="minutes", low=1)
    notice: int = key(120, "hydra/launcher=slurm: save and requeue this long before the limit", unit="seconds", low=10)
    requeues: int = key(100, "hydra/launcher=slurm: requeues allowed after a time limit", low=0)
    parallel: int = key(256, "hydra/launcher=slurm: concurrent runs", low=1)


@dataclass
class DebugConfig:
    """Keys `debug.*`."""

    max_steps: int = key(0, "training steps per epoch; 0: all", low=0)
    max_eval_batches: int = key(0, "evaluation batches; 0: all", low=0)


@dataclass
class Config:
    """The whole configuration: top-level keys and groups."""

    name: str = key(MISSING, "name of the row: run folder, table line, W&B group")
    paper_row: str | None = key(None, "id of the reproduced row in the paper's tables")
    fidelity: str = key(
        "published", "preset: released code, the same extended to unreleased rows, or the paper's equations",
        choices=("published", "extended", "described"),
    )  # fmt: skip
    baselines: list[str] = key([], "baseline rows: without all additions, then without one part")
    unspecified: list[str] = key([], "keys that no source specifies; reasons in the row's file")
    caveats: list[str] = key([], "reasons why the number is not directly comparable to the paper's")
    seed: int = key(0, "seed of weights, data order and augmentation", low=0, below=2**31)
    timesteps: int = key("${dataset.timesteps}", "time steps T", low=1)
    data_dir: str | None = key(None, "folder of the downloaded data sets; read only")
    cache_dir: str | None = key(None, "folder for prepared frames (scripts/prepare_data.py)")
    resume: str = key("auto", "auto: resume an unfinished run; never: start over", choices=("auto", "never"))
    force: bool = key(False, "rerun a finished run of the same configuration")
    skip_finished: bool = key(True, "sweeps skip finished runs; false: rerun them, resume the others")
    fail_fast: bool = key(False, "sweeps start no further run after the first failed one")
    device: str = key("auto", "auto: cuda if available; cuda:1: second GPU", choices=DEVICES)
    threads: int = key(0, "CPU threads; 0: 1 for model=small, else torch's; changes rounding", low=0, high=4096)
    dry_run: bool = key(False, "estimate time, memory and operations by layer; no training")
    energy: bool | None = key(None, "count synaptic operations and energy; null: if that costs under 2 %")
    neurobench: bool = key(False, "write neurobench.json: NeuroBench metrics of the test set")
    kernels: str = key(
        "auto", "backend; results equal up to rounding; off: PyTorch; compile: torch.compile", choices=tuple(KERNELS)
    )
    compile: bool | str = key(
        False, "torch.compile the network; reduce-overhead: CUDA graphs; a CPU needs a C++ compiler",
        choices=(False, True, "default", "reduce-overhead"),
    )  # fmt: skip
    deterministic: bool = key(True, "deterministic algorithms in torch; may be slower on CUDA")
    cudnn_benchmark: str = key("auto", "cuDNN benchmark mode", choices=("auto", "always", "never"))
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    neuron: NeuronConfig = field(default_factory=NeuronConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    runs_per_gpu: int = key(1, "hydra/launcher=gpus: concurrent runs per GPU", low=1)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    run_dir: str | None = key(None, "set by hydra.run.dir; not a key")


# ---------------------------------------------------------------- identity

# Keys that set where or how a run executes. Some still change results by rounding (threads, device, backends, compile), or
# with the number of processes (sync_bn): result.json records them, and tables show where runs differ.
NOT_HASHED = (
    "run_dir", "data_dir", "cache_dir", "resume", "force", "dry_run", "device", "threads", "logger", "energy", "neurobench",
    "skip_finished", "fail_fast", "slurm", "runs_per_gpu",
    "dataset.found", "dataset.workers", "dataset.on_device", "dataset.ahead", "dataset.verify", "debug.profile", "baselines", "unspecified", "caveats",
    "model.conv_backend", "model.checkpointing", "neuron.backend", "kernels", "compile", "cudnn_benchmark",
    "recipe.sync_bn",  # matters only with several processes, whose number is not a key
)  # fmt: skip

# Removed keys, the first two replaced by kernels=; allowed in stored configurations, not on the command line.
FORMER_KERNELS = ("model.conv_backend", "neuron.backend")
FORMER = (*FORMER_KERNELS, "debug.profile")

# Keys added after results existed, with the value equal to the earlier behaviour. With this value a key is left out of the
# hash, so that earlier results keep their configuration's hash.
ADDED: dict[str, Any] = {
    "neuron.decay_input": True, "augment.eventdrop_area": "rectangle", "augment.eventmix": 0.0, "augment.eventmix_prob": 1.0,
    "neuron.initial": "zero", "neuron.initial_value": 0.5, "neuron.initial_layers": None, "augment.rpg_drop": 0.0, "augment.rpg_mix": 0.0, "augment.rpg_relevance": "slrp", "model.stem_pool": "avg",
    "dataset.decoder": "pil", "recipe.class_balanced": False, "model.conv_init": "torch", "model.pool": "max", "model.unpooled": 0,
    "model.spiking_output": True, "model.init": "torch", "model.width": 64, "recipe.lr_per": None,
}  # fmt: skip

# Removed or renamed keys. Every configuration had them, with these defaults (or another key's value); they stay in the hash
# for the same reason.
RENAMED = {"recipe.imp_lr": "neuron.imp_lr", "recipe.imp_weight_decay": "neuron.imp_weight_decay"}
FORMERLY = {
    "neuron.tau": 2.0, "neuron.retain": 0.25, "loss.epsilon": None, "loss.lam": None, "loss.phi": None, "model.norm": None,
    "model.zero_init_residual": None, "model.head_init": None, "model.dropout": None,
}  # fmt: skip


def to_dict(config: Config) -> dict:
    """The configuration as plain containers in the form of the yamls; own settings inline."""
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
    """Flat `{"recipe.lr": 0.1, ...}` of every key that can change a result.

    A key of ADDED with its old value is left out. `fidelity=extended` counts as `published`: it is only a label.
    """
    plain = to_dict(config) if isinstance(config, Config) else config
    flat = {k: v for k, v in _flat(plain) if k not in NOT_HASHED and (k not in ADDED or v != ADDED[k])}
    if flat.get("neuron.imp") and flat.get("neuron.initial") == "imp":
        del flat["neuron.initial"]  # implied by neuron.imp
    flat = FORMERLY | flat
    for former, now in RENAMED.items():
        if now in flat:
            flat.setdefault(former, flat[now])
    if flat.get("fidelity") == "extended":
        flat["fidelity"] = "published"
    return flat


def config_hash(config: Config | dict, without: tuple[str, ...] = ()) -> str:
    """First 16 hex digits of the SHA-256 of `hashed(config)`, without the given keys (e.g. seed)."""
    flat = {k: v for k, v in hashed(config).items() if k not in without}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def differing(a: Config | dict, b: Config | dict) -> list[str]:
    """`["recipe.lr: 0.1 -> 0.2", ...]`: hashed keys in which two configurations differ."""
    fa, fb = ADDED | hashed(a), ADDED | hashed(b)
    changed = {k: f"{fa.get(k)} -> {fb.get(k)}" for k in sorted(fa.keys() | fb.keys()) if fa.get(k) != fb.get(k)}
    return [f"{k}: {values}" for k, values in changed.items() if changed.get(RENAMED.get(k, "")) != values]
