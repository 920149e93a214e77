"""What a build of the documentation adds (a hook of MkDocs): pages that follow from the code, and files elsewhere in the repository.

Nothing here is a list of names: the reference is made of the registries, the choices and keys of `--help`, and the commands of
pyproject.toml and scripts/. CONTRIBUTING.md and every Markdown file of results/ are pages too, under their own paths.
"""

import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import logging
import posixpath
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from snn_repro import registry
from snn_repro.__main__ import commands
from snn_repro.config import choices, help_text

ROOT = Path(__file__).resolve().parents[1]
log = logging.getLogger("mkdocs.snn_repro")  # below "mkdocs", so that a warning fails a build with --strict


# ---------------------------------------------------------------- the reference


def pages() -> Iterator[tuple[str, str]]:
    """(page, its Markdown) of all that is made."""
    yield from keys_pages(help_text())
    yield "reference/commands.md", commands_page()
    yield "results/notebook.md", notebook_page(json.loads((ROOT / "docs" / "results.ipynb").read_text("utf-8")))
    for things in vars(registry).values():
        if isinstance(things, registry.Registry):
            title = things._kind + ("es" if things._kind.endswith("s") else "s")
            yield f"reference/{title.replace(' ', '_')}.md", registry_page(title.capitalize(), things)


def registry_page(title: str, things: registry.Registry) -> str:
    """All of one kind: the word that chooses it, what it is, its docstring and code, its settings."""
    ours = {name: things._owners[name] for name in things if things._owners[name].startswith("snn_repro.")}
    files = {owner.rpartition(".")[0] for owner in ours.values()}
    about = importlib.import_module(files.pop() if len(files) == 1 else _package(things, files))
    lines = choices(things.group)
    parts = [f"# {title}", "", paragraphs(about.__doc__ or ""), ""]
    first: dict[str, str] = {}  # class: the name that it was shown under
    for name, owner in ours.items():
        parts += [f"## `{things.group}{'.' if things.group == 'augment' else '='}{name}` {{ #{name} }}", ""]
        if owner in first:
            parts += [f"As [`{first[owner]}`](#{first[owner]}). {cell(lines.get(name, ''))}", ""]
        else:
            first[owner] = name
            parts += [f"*{cell(lines[name])}*", ""] if name in lines else []
            parts += [
                f"::: {owner}",
                "    options:",
                "      show_root_heading: false",
                "      show_bases: false",
                "      show_root_toc_entry: false",
                "",
            ]
        parts += own_settings(things, name)
    return "\n".join(parts)


def _package(things: registry.Registry, files: set[str]) -> str:
    """The package that all files lie in: neurons.surrogates for surrogates, whose registry names neurons."""
    packages = {file.rpartition(".")[0] for file in files}
    return packages.pop() if len(packages) == 1 else things._module


def paragraphs(docstring: str) -> str:
    """A docstring as Markdown: its indented lines are a block that stays as it is typed."""
    return re.sub(r"(?m)^(?! )(.+)\n(?=    )", r"\1\n\n", inspect.cleandoc(docstring))


def own_settings(things: registry.Registry, name: str) -> list[str]:
    """A table of the settings that few of a kind have, and the values alone of those that most have; `reference/keys/` says
    what these mean."""
    settings, having = things.settings(name), Counter(key for other in things for key in things.settings(other))
    usual = [key for key in settings if things.group != "augment" and having[key] > 2 / 3 * len(things) > 1]
    rows = [
        (f"`{things.group.split('.')[0]}.{key}`", f"`{shown(setting.default)}`", cell(setting.help), cell(setting.unit),
         cell(", ".join(setting.names) or setting.range))
        for key, setting in settings.items() if key not in usual
    ]  # fmt: skip
    values = ", ".join(f"`{key}={shown(settings[key].default)}`" for key in usual)
    return [
        *(table(("key", "default", "meaning", "unit", "allowed"), rows) if rows else []),
        *([f"By default {values} ([meaning](keys/{things.group}.md)).", ""] if usual else []),
    ]


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def shown(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, str):
        return value
    return (
        json.dumps(value).replace(" ", "") if value is None or isinstance(value, bool | tuple | list) else f"{value:g}"
    )


def cell(text: str) -> str:
    """Plain words in a table."""
    return re.sub(r"([\\|*_<\[\]])", r"\\\1", text)


def keys_pages(text: str) -> Iterator[tuple[str, str]]:
    """(page, its Markdown) of what `--help` prints: a contents page, then one page a group with its choices and keys."""
    choices_of: dict[str, list[tuple[str, str]]] = {}
    keys_of: dict[str, list[tuple[str, str]]] = {}
    group = ""
    for line in text.splitlines():
        if re.fullmatch(r"\w+=|keys", line):
            group = line.removesuffix("=")
        elif group and (found := re.fullmatch(r"  (\S+) +(.*)", line)):
            word, meaning = found.groups()
            room = word.rpartition(".")[0] or "run"
            of, page = (keys_of, room) if group == "keys" else (choices_of, group)
            of.setdefault(page, []).append((f"`{word}`", cell(meaning)))
    groups = list(dict.fromkeys([*choices_of, *keys_of]))
    rows = [(f"[{g}](keys/{g}.md)", str(len(choices_of.get(g, ()))), str(len(keys_of.get(g, ())))) for g in groups]
    about = (
        "A group chooses a file under `conf/`; a key changes one value. `python -m snn_repro.train --help` prints all."
    )
    yield "reference/keys.md", "\n".join(["# Keys", "", about, "", *table(("group", "choices", "keys"), rows)])
    for g in groups:
        parts = [f"# {g.capitalize()}: choices and keys", ""]
        if g in choices_of:
            parts += [f"## Choices: `{g}=`", "", *table(("choice", "meaning"), choices_of[g])]
        if g in keys_of:
            parts += ["## Keys", "", *table(("key", "meaning"), keys_of[g])]
        yield f"reference/keys/{g}.md", "\n".join(parts)


def commands_page() -> str:
    """What each command says of itself, where `--help` is not a page of its own."""
    found = {name: inspect.cleandoc(importlib.import_module(entry.partition(":")[0]).__doc__ or "")
             for name, entry in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"].items()}  # fmt: skip
    for title, listed in commands():
        if title == "modules":
            found |= {
                name: inspect.cleandoc(importlib.import_module(name.split()[-1]).__doc__ or "") for name in listed
            }
    found |= {f"python scripts/{file.name}": help_of(load(file)) for file in sorted((ROOT / "scripts").glob("*.py"))}
    parts = [
        "# Commands",
        "",
        "What each says to `--help`; `python -m snn_repro` lists them. Training has [its own page](keys.md).",
        "",
    ]
    for name, text in found.items():
        parts += [f"## {name}", "", "```text", text.strip(), "```", ""]
    return "\n".join(parts)


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook to read: its words and code."""
    fences = {"code": ("```python\n", "\n```"), "markdown": ("", "")}
    cells = [
        fences[cell["cell_type"]][0] + "".join(cell["source"]) + fences[cell["cell_type"]][1]
        for cell in notebook["cells"]
    ]
    return "\n\n".join([*cells, "The same [as a notebook](../results.ipynb).", ""])


def load(file: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(file.parent), *sys.path]):
        spec.loader.exec_module(module)
    return module


def help_of(script: ModuleType) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), mock.patch.dict("os.environ", COLUMNS="120"):
        script.main(["--help"])
    return out.getvalue()


def with_choices(text: str) -> str:
    """A page whose `<!-- choices GROUP -->` blocks hold the group's choices, as `--help` prints them."""

    def lines(found: re.Match[str]) -> str:
        rows = [(f"`{name}`", cell(line)) for name, line in choices(found[1]).items()]
        return "\n".join([f"<!-- choices {found[1]} -->", *table((f"`{found[1]}=`", ""), rows)[:-1], "<!-- / -->"])

    return re.sub(r"<!-- choices (\w+) -->\n.*?<!-- / -->", lines, text, flags=re.DOTALL)


def with_reports(text: str, folder: Path = ROOT / "results" / "contributed" / "gpu") -> str:
    """A page whose `<!-- gpu reports -->` block holds a line for each report that came in from a GPU."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        report = json.loads(file.read_text("utf-8"))
        machine, wrong = report["machine"], len(report["not_right"])
        gpu = f"[{cell(machine['GPU'])}](../results/contributed/gpu/{file.stem}.md)"
        versions = ", ".join(f"{name} {machine[name]}" for name in ("driver", "torch", "triton"))
        steps = (steps_per_second(report["tables"], name) for name in ("SEW-ResNet-18 ImageNet", "VGG-48"))
        rows.append((gpu, machine["date"], cell(versions), str(wrong or "nothing"), *steps))
    head = ("GPU", "date", "versions", "not right", "SEW-ResNet-18 224 px, training samples/s", "VGG-48")
    block = "\n".join(table(head, rows)[:-1] if rows else ["No report has come in yet."])
    return re.sub(r"(<!-- gpu reports -->\n).*?(\n<!-- / -->)", lambda m: m[1] + block + m[2], text, flags=re.DOTALL)


def steps_per_second(tables: list[dict[str, Any]], network: str) -> str:
    """Training samples per second of ours in a report, and how many times those of PyTorch only and of spikingjelly."""
    titled = [t["rows"] for t in tables if f": {network}, " in t["title"] and t["title"].endswith(": training")]
    speeds = {case: row["samples/s"] for rows in titled for case, row in rows.items()}
    if "ours" not in speeds:
        return "no result"
    rivals = {"kernels=off": "ours, kernels=off", "spikingjelly": "the same weights on spikingjelly"}
    best = {
        name: max((v for case, v in speeds.items() if case.startswith(of)), default=0) for name, of in rivals.items()
    }
    times = [f"{speeds['ours'] / v:.2g}x {name}" for name, v in best.items() if v]
    return f"{speeds['ours']:,.0f}" + (f" ({', '.join(times)})" if times else "")


# ---------------------------------------------------------------- the hook


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = with_files(config.nav or [])
    return config


def with_files(nav: list) -> list:
    """A navigation in which `folder/*.md` stands for the files that there are, in docs/ or in the repository."""
    found: list = []
    for item in nav:
        if isinstance(item, dict):
            found += [{title: with_files(part) if isinstance(part, list) else part} for title, part in item.items()]
        elif "*" in item:
            found += sorted(
                path.relative_to(root).as_posix() for root in (ROOT / "docs", ROOT) for path in root.glob(item)
            )
        else:
            found.append(item)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, text in pages():
        files.append(File.generated(config, page, content=text))
    for path in [
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "results").rglob("*.md")),
        *sorted((ROOT / "results").rglob("*.svg")),
    ]:
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they work in the repository, turned to where their files are in the documentation."""
    path = page.file.src_uri
    inside = page.file.src_dir is not None and Path(page.file.src_dir).resolve() == ROOT / "docs"
    return relinked(
        with_reports(with_choices(markdown)), posixpath.join("docs", path) if inside else path, set(files.src_uris)
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Equations (`$...$`, `$$...$$`, in pages and docstrings) as MathML, which browsers draw without a script."""

    def typeset(found: re.Match[str]) -> str:
        display, latex = found[0].startswith("<div"), unescape(found[1])
        return convert(latex, display="block" if display else "inline")

    return re.sub(r'(?s)<(?:span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</(?:span|div)>', typeset, html)


def relinked(markdown: str, path: str, known: set[str]) -> str:
    """Links of a file of the repository, by its path; those to files that are no pages become their words."""

    def relink(found: re.Match[str]) -> str:
        words, target, anchor = found.groups()
        here = posixpath.dirname(path)
        there = posixpath.normpath(posixpath.join(here, target)).removeprefix("docs/")
        if there not in known:
            return (
                found[0] if (ROOT / posixpath.join(here, target)).exists() is False else words.lstrip("!").strip("[]")
            )
        return (
            f"{words}({posixpath.relpath(there, posixpath.dirname(path.removeprefix('docs/')) or '.')}{anchor or ''})"
        )

    return re.sub(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", relink, markdown)


FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+|url\(["']?(?:https?:)?//[^"')\s]+"""
)


def foreign(text: str) -> list[str]:
    """What a page or style sheet would load from other hosts. Links to them are none of it."""
    return [found[0] for found in FOREIGN.finditer(text)]


def on_post_build(config: MkDocsConfig) -> None:
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            for found in foreign(path.read_text("utf-8")):
                log.warning("%s loads from another host: %s", path.relative_to(config.site_dir), found)


if __name__ == "__main__":  # python docs/_pages.py: the tables of choices, from conf/, and of reports, from results/
    for page in [*(ROOT / "docs").glob("choose*.md"), ROOT / "docs" / "performance_gpu.md"]:
        page.write_text(with_reports(with_choices(page.read_text("utf-8"))), "utf-8")
