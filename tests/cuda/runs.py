"""python runs.py LIBRARY FILE OUT: runs of FILE, {name: overrides}, on the CPU and on the device of pretended.py. OUT: a list of

{"name", "error": in words or null, "waits": between the second batch and the last, "cpu", "cuda": their losses}
"""

import sys
from pathlib import Path

from pretended import load, pretended

load(Path(sys.argv[1]))

import json  # noqa: E402
import tempfile  # noqa: E402
import traceback  # noqa: E402
from unittest import mock  # noqa: E402

import pytest  # noqa: E402

from snn_repro import train  # noqa: E402
from snn_repro.config import load_config  # noqa: E402
from snn_repro.trained.evaluate import evaluate_run  # noqa: E402

BATCHES = 3  # of an evaluation
SHORT = [
    "logger.mode=disabled", "recipe.epochs=2", "recipe.eval_batch_size=20", "debug.max_steps=3",
    f"debug.max_eval_batches={BATCHES}", "energy=false", "threads=1", "dataset.workers=0",
]  # fmt: skip


def watching(device):
    """Training in which `device` watches from the end of the first step of an epoch, or batch of an evaluation, to the last."""

    class Watching(train.Training):
        def train_step(self, *given):
            done = super().train_step(*given)
            device.starting, device.watched = False, True
            return done

        def tally(self, pending):
            device.watched = False
            super().tally(pending)

        def evaluate(self, batches, part):
            self.left = min(len(batches), BATCHES)
            return super().evaluate(batches, part)

        def stop_if_requested(self, *pending):
            super().stop_if_requested(*pending)
            if not pending:  # after a batch of an evaluation
                self.left -= 1
                device.watched = self.left > 0

    return mock.patch.object(train, "Training", Watching)


def numbers(overrides: list[str], device=None, interrupt: bool = False) -> list[float]:
    """Losses of a run on the pretended device, or on the CPU."""
    config = load_config([*SHORT, *overrides, f"device={'cuda:0' if device else 'cpu'}"])
    with tempfile.TemporaryDirectory() as folder:
        if interrupt:
            with interrupted(), pytest.raises(KeyboardInterrupt):
                train.run(config, folder)
            device.starting = True
        result = train.run(config, folder)
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        if interrupt:
            device.starting = True
            test = evaluate_run(folder, [f"device={config.device}"])
            assert (test.acc, test.loss) == (result.acc_last, pytest.approx(result.loss_last))
    assert result.device == ("cuda" if device else "cpu") and len(lines) == config.recipe.epochs
    return [line[k] for line in lines for k in ("train_loss", "loss")]


def interrupted():
    """Training breaks off behind the first checkpoint."""
    save = train.Training.save_epoch

    def once(self, *given, **named):
        save(self, *given, **named)
        raise KeyboardInterrupt

    return mock.patch.object(train.Training, "save_epoch", once)


def main() -> None:
    found = []
    for name, overrides in json.loads(Path(sys.argv[2]).read_text()).items():
        said = dict(name=name, error=None, waits={}, cpu=None, cuda=None)
        try:
            if not any(o.startswith("recipe.amp=") for o in overrides):
                said["cpu"] = numbers([*overrides, "kernels=off"])
            with pretended() as device, watching(device):
                more = [] if any(o.startswith("kernels=") for o in overrides) else ["kernels=off"]
                more += [] if any("recipe.amp=" in o for o in overrides) else ["recipe.amp=off"]
                said["cuda"] = numbers([*overrides, *more], device, name.startswith("interrupted"))
                said["waits"] = dict(device.waits)
        except Exception:  # the test fails with it
            said["error"] = traceback.format_exc()
        found.append(said)
    Path(sys.argv[3]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
