"""Words: lengths of pages and of docstrings' first lines, words to avoid, the first page in two languages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from snn_repro.config import help_text

ROOT = Path(__file__).parents[2]
LIST_OF_AVOIDED = '"who computes", "anew", "whoever", "hears", "wished", "rightly"'  # as docs/style.md names them
AVOIDED = ("who computes", "anew", "whoever", "hears", "wished", "rightly")
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LONG = ("docs/notebook.md", "CHANGELOG.md")  # the laboratory notebook, and the history of changes
RESULTS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("results/**/*.md"))
FIRST_LINE = 15  # words


def avoided(text: str) -> list[str]:
    return [word for word in AVOIDED if re.search(rf"\b{word}\b", text)]


def docstrings(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, ast.AST, str | None]]:
    """(name, definition, docstring) of a module or class and of all that is public in it."""
    yield name, node, ast.get_docstring(node)
    for part in node.body:
        if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
            yield from docstrings(part, f"{name}.{part.name}")
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and not part.name.startswith("_"):
            yield f"{name}.{part.name}", part, ast.get_docstring(part)


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
    words = {page: len((ROOT / page).read_text("utf-8").split()) for page in PAGES if page not in LONG}
    assert words["README.md"] <= 700
    assert not {page: n for page, n in words.items() if n > 1500}


@pytest.mark.parametrize("page", [page for page in PAGES + RESULTS if page not in LONG])
def test_words_that_a_reader_would_stop_at(page):
    assert not avoided((ROOT / page).read_text("utf-8").replace(LIST_OF_AVOIDED, ""))


def test_the_words_of_help():
    assert not avoided(help_text())


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("snn_repro/**/*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_docstrings_begin_with_what_the_thing_is(path):
    found = list(docstrings(ast.parse(path.read_text("utf-8")), path.stem))
    methods = {id(part) for _, node, _ in found if isinstance(node, ast.ClassDef) for part in node.body}
    assert not [name for name, node, text in found if text is None and id(node) not in methods]
    first = {name: text.splitlines()[0] for name, _, text in found if text}
    assert not {name: line for name, line in first.items() if len(line.split()) > FIRST_LINE}
    assert not [name for name, _, text in found if text and avoided(text)]
