"""Provenance of a result: version of the numbers, commit, plug-in packages."""

import subprocess
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from snn_repro import outside

PACKAGE = Path(__file__).parent

# Runs whose numbers changed at each version: KEY=VALUE, with * as in file names; a comma is "or", a space is "and". A
# change of any number of an existing configuration adds a line here and one in CHANGELOG.md.
MOVED = {1: "*", 2: "neuron=clif, model=spikformer*, model=maxformer, model=vgg16", 3: "model=*former*"}
NUMBERS = max(MOVED)


def moved_since(version: int, flat: Mapping[str, Any]) -> bool:
    """Whether numbers of a flat configuration changed after `version`; missing keys match any value."""

    def fits(word: str) -> bool:
        key, _, pattern = word.partition("=")
        values = [flat[name] for name in (key, f"{key}.name") if name in flat]
        return not values or fnmatchcase(str(values[0]), pattern)

    later = [what for at, what in MOVED.items() if at > version]
    return any(all(map(fits, words.split())) for what in later for words in what.split(","))


def code_version() -> dict[str, Any]:
    """`dict(commit, dirty, numbers, outside)`; commit and dirty are None outside a repository."""
    commit, dirty = git_state()
    return dict(commit=commit, dirty=dirty, numbers=NUMBERS, outside=outside.versions())


@cache
def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it, collected results aside); (None, None) outside a repository."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed: not our repository
        return None, None
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
    return _git("rev-parse", "HEAD"), None if status is None else bool(status)


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *args], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
