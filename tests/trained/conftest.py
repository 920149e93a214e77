"""Small finished runs, made once: what is done with them must leave them as they are."""

import pytest

from snn_repro.config import load_config
from snn_repro.train import run
from snn_repro.trained.load import log

SHORT = ["logger.mode=disabled", "recipe.epochs=2", "debug.max_steps=3"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """IF with IMP, LTS, averaged weights."""
    folder = tmp_path_factory.mktemp("digits")
    run(load_config([*SHORT, "recipe.ema_decay=0.8"]), str(folder))
    return folder


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Emulated events, read by their mean, without the kernels (which are compiled at first)."""
    folder = tmp_path_factory.mktemp("recorded")
    more = ["dataset=digits_dvs", "timesteps=3", "loss=tet", "kernels=off", "debug.max_eval_batches=1", f"cache_dir={folder.parent}"]  # fmt: skip
    run(load_config([*SHORT, *more]), str(folder))
    return folder


@pytest.fixture
def entered(capsys, monkeypatch):
    """A command in this process: entered(entry, word, ...) returns exit code, stdout and stderr."""
    before = log.handlers[:], log.level

    def call(entry, *words) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["a command", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            entry()
        log.handlers[:] = before[0]
        log.setLevel(before[1])
        return stop.value.code, *capsys.readouterr()

    return call
