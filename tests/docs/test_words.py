"""Words: the length of pages, words to avoid, and the first page in two languages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AVOIDED = ("who computes", "anew", "whoever", "hears", "wished", "rightly")
PAGES = [
    "README.md",
    *(f"docs/{page}.md" for page in ("index", "start", "choose", "choose_network", "run_folder", "honest")),
]


def facts(page: str) -> dict[str, list[str]]:
    """What both languages must share: commands, links and numbers."""
    text = re.sub(r"\[(中文|English)\]\([^)]*\)", "", (ROOT / page).read_text("utf-8"))
    plain = re.sub(r"\]\([^)]*\)|<!--.*?-->", "", text)
    return dict(
        commands=[re.sub(r"#.*", "", code) for code in re.findall(r"(?ms)^```\w+\n(.*?)^```$", text)]
        + re.findall(r"(?<!`)`((?:python|snn-)[^`]*)`", text),
        links=re.findall(r"\]\(([^)\s]+)\)", text),
        numbers=sorted(re.findall(r"\d+(?:\.\d+)?", plain)),
    )


def test_both_first_pages_say_the_same():
    assert facts("README.md") == facts("README.zh.md")
    assert all((ROOT / link.partition("#")[0]).exists() for link in facts("README.md")["links"])


def test_pages_are_short():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 700
    assert max(len((ROOT / page).read_text("utf-8").split()) for page in PAGES) <= 1500


@pytest.mark.parametrize("page", PAGES)
def test_words_that_a_reader_would_stop_at(page):
    assert not [word for word in AVOIDED if re.search(rf"\b{word}\b", (ROOT / page).read_text("utf-8"))]
