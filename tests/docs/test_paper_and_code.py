"""The table of departures says what the rows' configurations say."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from snn_repro.config import load_config, to_dict

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper_and_code.md").read_text("utf-8")
LINES = re.findall(r"\| `(\w+)` \| `([\w.]+)` \| `([^`]+)` \| `([^`]+)` \|$", PAGE, re.MULTILINE)


@cache
def configuration(row: str, fidelity: str | None) -> dict:
    return to_dict(load_config([f"experiment={row}", *([f"fidelity={fidelity}"] if fidelity else [])]))


def value(row: str, key: str, fidelity: str | None):
    found = configuration(row, fidelity)
    for word in key.split("."):
        found = found[word]
    return found


@pytest.mark.parametrize("row, key, published, described", LINES, ids=lambda word: word)
def test_a_departure_is_as_the_page_says(row, key, published, described):
    assert value(row, key, None) == yaml.safe_load(published)
    assert value(row, key, "described") == yaml.safe_load(described)


def test_the_page_has_every_key_of_the_preset():
    preset = yaml.safe_load((ROOT / "conf" / "fidelity" / "described.yaml").read_text("utf-8"))
    keys = {f"{group}.{key}" for group, values in preset.items() if isinstance(values, dict) for key in values}
    exchanged = {key for _, key, published, described in LINES if published != described}
    assert keys - exchanged == {"neuron.v_reset", "neuron.surrogate_width"}  # they go with the reset and the surrogate
    assert exchanged <= keys
