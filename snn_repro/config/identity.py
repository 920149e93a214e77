"""What makes two configurations the same: the keys that can change a number, and their hash."""

import dataclasses
import hashlib
import json
from typing import Any

from snn_repro.config.schema import OWN, Config

# Keys that say where or how a run happens. Some still move numbers by rounding (threads, device, backends, compile), or
# with the number of processes (sync_bn): result.json says what they were, and tables show where runs differ in it.
NOT_HASHED = (
    "run_dir", "data_dir", "cache_dir", "resume", "force", "dry_run", "device", "threads", "logger", "energy", "neurobench",
    "skip_finished", "slurm", "runs_per_gpu",
    "dataset.found", "dataset.workers", "dataset.on_device", "dataset.ahead", "dataset.verify", "debug.profile", "baselines", "unspecified", "caveats",
    "model.conv_backend", "model.checkpointing", "neuron.backend", "kernels", "compile", "cudnn_benchmark",
    "recipe.sync_bn",  # matters with several processes alone, and their number is no key either
)  # fmt: skip

# Of these, keys that runs once had and that kernels= took over: stored configurations may have them, commands may not.
FORMER_KERNELS = ("model.conv_backend", "neuron.backend")

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
    plain = dataclasses.asdict(config)
    for group in OWN:
        plain[group] |= plain[group].pop("own")
    return plain


def hashed(config: Config | dict) -> dict[str, Any]:
    """Flat `{"recipe.lr": 0.1, ...}` of every key that can change a number in the result.

    Two configurations without a key of ADDED, or with its old value, are the same. `fidelity=extended` says only that no
    code was released that does what the row does, so it counts as `published`.
    """
    flat: dict[str, Any] = {}

    def walk(part: dict, prefix: str) -> None:
        for k, v in part.items():
            full = prefix + k
            if full in NOT_HASHED or (full in ADDED and v == ADDED[full]):
                continue
            if isinstance(v, dict):
                walk(v, full + ".")
            else:
                flat[full] = v

    walk(to_dict(config) if isinstance(config, Config) else config, "")
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
