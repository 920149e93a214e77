"""The tables of differences between paper and code agree with the rows' configurations."""

import re
from pathlib import Path

import pytest
import yaml
from all_rows import COMPARED, compared_rows, rows
from scripts_of_ours import script

from snn_repro.config import differing, to_dict
from snn_repro.paper.rows import configs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/paper_and_code.md").read_text("utf-8")
LINES = re.findall(r"\| `(\w+)` \| `([\w.]+)` \| `([^`]+)`(?: \| `([^`]+)`)? \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def configurations():
    named = list(dict.fromkeys(row for row, *_ in LINES))
    return [{k: to_dict(v) for k, v in configs(named, preset).items()} for preset in (None, "described")]


def value(configuration: dict, key: str):
    for word in key.split("."):
        configuration = configuration[word]
    return configuration


@pytest.mark.parametrize("row, key, published, described", LINES, ids=lambda word: word)
def test_a_departure_is_as_the_page_says(row, key, published, described, configurations):
    expected = [yaml.safe_load(word) for word in (published, described or published)]
    assert [value(each[row], key) for each in configurations] == expected


def test_the_page_has_every_key_of_the_preset():
    preset = yaml.safe_load((ROOT / "conf/fidelity/described.yaml").read_text("utf-8"))
    keys = {f"{group}.{key}" for group, values in preset.items() if isinstance(values, dict) for key in values}
    exchanged = {key for _, key, published, described in LINES if described}
    assert keys - exchanged == {"neuron.v_reset", "neuron.surrogate_width"}  # they go with the reset and the surrogate
    assert exchanged <= keys


SOURCES, TABLES = ROOT / "docs/sources.yaml", script("make_tables")
KNOWN = yaml.safe_load(SOURCES.read_text("utf-8"))


def test_the_tables_of_sources_are_current():
    for page in (path.read_text("utf-8") for path in SOURCES.parent.glob("paper_and_code_*.md")):
        assert TABLES.with_sources(page, SOURCES) == page


def test_every_row_of_others_has_a_source_for_every_key():
    assert KNOWN["rows"].keys() == set(COMPARED)
    for name, config in compared_rows().items():
        places = KNOWN["rows"][name]
        said = [what.partition("=")[0] for words in places.values() for what in words.split()]
        found = {what if what in TABLES.WORDS.values() else TABLES.word(what) for what in said}
        if name.endswith("_same_recipe"):  # the method alone
            changed = {d.split(":")[0] for d in differing(rows()[config.baselines[0]], config)} - {"name", "paper_row"}
            assert found == {TABLES.word(key) for key in changed}, name
        else:
            assert found | {TABLES.word(key) for key in config.unspecified} == set(TABLES.WORDS.values()), name
            assert len(said) == len(set(said)), name
        for place in places:
            assert place.partition(" ")[0] in KNOWN["repositories"] or place.startswith("text only ("), place


def test_repositories_are_named_with_their_commits():
    for where in KNOWN["repositories"].values():
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", where)
