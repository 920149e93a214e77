"""Configuration: keys, checks and composition.

`load_config(["experiment=...", "seed=1"])` composes `conf/` with Hydra and returns a validated `Config`. Every composed
node passes `checked(node)`, which raises `ConfigError`, one sentence with the key, the value and what is allowed,
before any data is read.
"""

from snn_repro.config.check import (
    TEXT_ONLY_NOTE,
    checked,
    choices,
    conf_files,
    explain,
    frame_shape,
    given_keys,
    help_text,
    idle,
    keys,
    text_only,
    unknown,
)
from snn_repro.config.compose import (
    compose_checked,
    load_config,
    multirun_config,
    readable,
    recomposed,
    refuse_misplaced,
    search_outside,
    settled,
    sweep_jobs,
    tweaks,
)
from snn_repro.config.schema import (
    ADDED,
    CONF_DIR,
    GROUPS,
    PAPER_TABLES,
    AugmentConfig,
    Config,
    ConfigError,
    config_hash,
    differing,
    hashed,
    to_dict,
)

__all__ = [
    "ADDED", "CONF_DIR", "GROUPS", "PAPER_TABLES", "TEXT_ONLY_NOTE", "AugmentConfig", "Config", "ConfigError",
    "checked", "choices", "compose_checked", "conf_files", "config_hash", "differing", "explain", "frame_shape", "given_keys",
    "hashed", "help_text", "idle", "keys", "load_config", "multirun_config", "readable", "recomposed", "refuse_misplaced",
    "search_outside", "settled", "sweep_jobs", "text_only", "to_dict", "tweaks", "unknown",
]  # fmt: skip
