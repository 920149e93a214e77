"""The configuration: every key, its checks, and how it is composed.

`load_config(["experiment=...", "seed=1"])` composes `conf/` with Hydra and returns a validated `Config`. `checked(node)` is the
only way from a composed node to a `Config`; it raises `ConfigError`, one sentence that names the key, the value and what is
allowed, before any data is read.
"""

from snn_repro.config.check import check_machine, checked, frame_shape, given_keys, idle
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
from snn_repro.config.identity import ADDED, config_hash, differing, hashed, to_dict
from snn_repro.config.schema import CONF_DIR, GROUPS, PAPER_TABLES, AugmentConfig, Config, ConfigError, RecipeConfig
from snn_repro.config.sentences import SAID_OF_THEM, choices, conf_files, explain, help_text, keys, text_only

__all__ = [
    "ADDED", "CONF_DIR", "GROUPS", "PAPER_TABLES", "AugmentConfig", "Config", "ConfigError", "RecipeConfig", "SAID_OF_THEM",
    "check_machine", "checked", "choices", "compose_checked", "conf_files", "config_hash", "differing", "explain",
    "frame_shape", "given_keys", "hashed", "help_text", "idle", "keys", "load_config", "multirun_config", "readable",
    "recomposed", "refuse_misplaced", "search_outside", "settled", "sweep_jobs", "text_only", "to_dict", "tweaks",
]  # fmt: skip
