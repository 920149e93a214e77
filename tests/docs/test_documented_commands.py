"""What the documentation tells people to type can be typed: bash blocks, python blocks, and the first page as a whole."""

import argparse
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripts_of_ours import script

from snn_repro.config import GROUPS, compose_checked, keys, load_config, sweep_jobs
from snn_repro.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / page for page in ("README.md", "CONTRIBUTING.md", "results/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OTHERS = {*". cd find mkdocs pip pytest python3 sbatch tensorboard trackio wandb".split()}  # programs


def blocks(language: str, pages: list[Path] = PAGES) -> list[tuple[str, str]]:
    """(page, text) of every fenced block in a language."""
    return [
        (str(page.relative_to(ROOT)), text)
        for page in pages
        for text in re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    ]


def commands(text: str) -> list[list[str]]:
    """The commands of a bash block as words, without comments. Of `[optional]`, `a|b` and `more...`, which stand for what may be
    typed, the optional and the first are taken."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "|"):
                found += [words] if words else []
                words = []
                continue
            word = word.removeprefix("[")
            word = word if "[" in word else word.removesuffix("]")
            if re.fullmatch(r"[^(='\"]+(=\w+)?(\|\w+)+", word):  # quoted words keep their bars
                word = word.split("|")[0]
            if word and not word.endswith("=..."):
                words.append(word.removesuffix("..."))
    return found


TYPED = list(dict.fromkeys(tuple(words) for _, text in blocks("bash") for words in commands(text)))


class Parsed(Exception):
    """The words of a script were understood; nothing more is to happen."""


@pytest.fixture
def parse_only(monkeypatch):
    for name in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, name)

        def parse(self, *args, original=original, **kwargs):
            original(self, *args, **kwargs)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, name, parse)


def check_training(words: list[str]) -> None:
    words = [w for w in words if w not in ("--help", "-h")]
    sweep, other_sweeper = "-m" in words, any(w.startswith("hydra/sweeper=") for w in words)
    of_launcher = [w for w in words if re.match(r"slurm\.|runs_per_gpu=", w)]  # refused without the launcher, an extra
    assert {w.partition("=")[0] for w in of_launcher} <= {*keys()}
    words = [w for w in words if w != "-m" and w not in of_launcher and not re.match(r"\+?hydra[./]", w)]
    if other_sweeper:
        assert all(w.partition("=")[0] in {*keys(), *GROUPS} for w in words)
    elif sweep:
        compose_checked(sweep_jobs(words)[-1], sweep=True)
    else:
        load_config(words)


def check_script(path: str, words: list[str]) -> None:
    assert (ROOT / path).is_file()
    module, text = script(Path(path).stem), (ROOT / path).read_text("utf-8")
    if re.search(r"\.parse_(intermixed_)?args\(", text):
        with pytest.raises((Parsed, SystemExit)) as left:
            assert module.main(words) != 2, "it did not understand these words"
        assert left.type is Parsed or (left.value.code in (0, None) and {"--help", "-h"} & {*words})
    else:  # prepare_data: its own words and keys of training
        load_config(module.own_options([w for w in words if w not in ("--help", "-h")])[0])


def check_console_script(name: str, words: list[str]) -> None:
    module, _, function = PROJECT["scripts"][name].partition(":")
    module = importlib.import_module(module)
    assert callable(getattr(module, function))
    if name == "snn-train":
        check_training(words)
    elif name == "snn-eval":
        config, own = load_config([]), ("weights", *module.ANYTIME)
        module.early_stop_settings(words)
        for word in (
            w for w in words if "=" in w and w.partition("=")[0] not in own
        ):  # one at a time: they may contradict
            module.with_overrides(SimpleNamespace(config=config), module.as_tested(config), [word])


def check(words: list[str]) -> None:
    program, *rest = words
    match program, rest:
        case "python", ["-m", "snn_repro.train", *more]:
            check_training(more)
        case "torchrun", [*_, "-m", "snn_repro.train", experiment, _]:
            check_training([experiment])
        case "python", ["-m", module, *_]:
            spec = importlib.util.find_spec(module)
            assert spec, f"there is no module {module}"
            assert spec.submodule_search_locations or "__main__" in Path(spec.origin).read_text("utf-8")
        case "python", [path, *more]:
            check_script(path, more)
        case _, _ if program in PROJECT["scripts"]:
            check_console_script(program, rest)
        case _, _ if program.endswith(".sh"):
            assert os.access(ROOT / program, os.X_OK)
        case _:
            assert program in OTHERS, f"{program} is no command of this project nor a program that its pages name"
    if program == "pip":
        for extra in (e for w in rest for g in re.findall(r"(?:^\.|^snn_repro)\[(.*)\]$", w) for e in g.split(",")):
            assert extra in PROJECT["optional-dependencies"], f"there is no extra '{extra}'"
    if program in ("pytest", "sbatch"):
        assert all((ROOT / w).exists() for w in rest if "/" in w and "=" not in w)


@pytest.fixture
def typing(parse_only, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "scripts")


@pytest.mark.parametrize("words", TYPED, ids=lambda words: shlex.join(words)[:90])
def test_a_command_can_be_typed(words, typing):
    check([*words])


@pytest.mark.parametrize(
    "line",
    [
        "python -m snn_repro.train neuron=iff", "python -m snn_repro.train -m recipe.ln=1,2", "python -m snn_repro.tran",
        "python scripts/compare.py runs --outputs table.md", "python scripts/nothing.py", "snn-evaluate RUN", "pytest tests/nothing",
        "snn-eval RUN timestep=6", "python scripts/prepare_data.py data_dirs=DIR", 'pip install -e ".[everything]"', "train.sh",
    ],
)  # fmt: skip
def test_a_wrong_command_is_seen(line, typing):
    with pytest.raises((AssertionError, UserError, SystemExit, pytest.fail.Exception)):
        check(shlex.split(line))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a short run, a picture and the committed results, where python blocks find what they name."""
    from PIL import Image

    from snn_repro.train import run

    folder = tmp_path_factory.mktemp("typed")
    Image.new("L", (8, 8), 90).save(folder / "seven.png")
    (folder / "results").symlink_to(ROOT / "results")
    run(load_config([*SHORT, f"hydra.run.dir={folder / 'runs/digits-small-if_imp-lts/seed0'}"]))
    return folder


SHORT = ["recipe.epochs=1", "debug.max_steps=1", "debug.max_eval_batches=1", "logger.mode=disabled", "kernels=off"]
# those of these pages are a package, which tests/test_outside.py installs
PYTHON = blocks("python", [page for page in PAGES if page.name not in ("CONTRIBUTING.md", "extending.md")])


@pytest.mark.parametrize("page, text", PYTHON, ids=lambda value: value.splitlines()[0][:60])
def test_a_python_block_runs(page, text, place, monkeypatch):
    monkeypatch.chdir(place)

    def short(overrides, *rest):
        given = {o.partition("=")[0] for o in overrides}
        return load_config([*overrides, *(o for o in SHORT if o.partition("=")[0] not in given)], *rest)

    monkeypatch.setattr("snn_repro.config.load_config", short)
    exec(compile(text, page, "exec"), {"__name__": page})


@pytest.mark.slow
def test_the_first_page_as_a_newcomer(tmp_path):
    """Clone, install and type docs/start.md from top to bottom, each training for one epoch; prints what takes how long."""
    clone, began = tmp_path / "snn_repro", time.monotonic()
    subprocess.run(["git", "clone", "-q", f"file://{ROOT}", clone], check=True)
    lines = ["set -euo pipefail"]
    for text in (text for page, text in blocks("bash") if page == "docs/start.md"):
        for line in text.splitlines():
            if "snn_repro.train" in line and "--help" not in line:
                line = re.sub(r" recipe\.epochs=\d+", "", line) + " recipe.epochs=1"
            lines += ["SECONDS=0", f"{line} > last.txt", f'echo "$SECONDS s  "{shlex.quote(line)}']
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "OMP_NUM_THREADS", "VIRTUAL_ENV")}
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    print(f"\n{done.stdout}{time.monotonic() - began:.0f} s in all")
    shutil.rmtree(clone / ".venv")  # gigabytes, which pytest would keep
    assert (clone / "report.html").stat().st_size > 100_000
    assert "digits-small-if_imp-lts" in (clone / "table.md").read_text("utf-8")
    assert "recipe.epochs=1" in (clone / "results" / "tables" / "runs.md").read_text("utf-8")
