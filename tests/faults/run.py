"""Kill and break trainings, and check that each goes on with the same numbers or says one clear sentence.

    python tests/faults/run.py --kills 200     # the long form, some ten minutes of one core: docs/reliability.md
    python tests/faults/run.py --kills 6       # the short form of the default tests

Exit code 0 when everything was recovered.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from runs import (
    SHORT,
    STAGES,
    WRITTEN,
    Child,
    at_write,
    checkpoint,
    configuration,
    content,
    disk_full,
    kill_self,
    run_to_end,
    said,
    same,
    torch,
    train,
    unsound,
    warm_up,
)

from snn_repro.data.batches import LoaderBatches

SIGNALS = (signal.SIGKILL, signal.SIGTERM)


class Harness:
    """What all parts share: a folder, a random generator, the numbers of an undisturbed run, and the outcomes."""

    def __init__(self, root: Path, seed: int):
        self.root, self.random = root, random.Random(seed)
        self.config = configuration()
        self.kills: list[tuple[str, str]] = []  # when, signal
        self.problems: list[str] = []
        self.counter = 0
        self.reference = self.finish(self.folder(), None)
        started = time.perf_counter()
        self.finish(self.folder(), self.reference)
        self.seconds = time.perf_counter() - started  # of an undisturbed run, once compiled kernels are cached

    def folder(self) -> Path:
        self.counter += 1
        return self.root / f"run{self.counter:03d}"

    def look(self, folder: Path) -> None:
        """After a process ended in any way: nothing broken may stand under a final name."""
        self.problems += [f"{folder.name}: {bad}" for bad in unsound(folder)]

    def finish(self, folder: Path, reference: dict | None) -> dict:
        """Run to the end; the numbers. Raises AssertionError when they are not those of the reference."""
        outcome = run_to_end(folder, self.config)
        assert outcome.code == 0, outcome.said
        self.look(folder)
        assert not [*folder.glob("*.tmp")]
        found = content(folder)
        assert reference is None or same(found, reference), f"{folder}: other numbers than an undisturbed run"
        return found

    def attempt(self, what: str, check) -> None:
        """`check(folder)`, which returns what was said; an AssertionError is a problem."""
        folder = self.folder()
        try:
            print(f"{what}: {check(folder)}")
        except AssertionError as error:
            self.problems.append(f"{what}: {error}")
        self.look(folder)
        shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------ kills

    def kill_many(self, wanted: int, long: bool) -> None:
        """Runs that are killed up to four times, in turn at a random moment and inside a chosen write."""
        writes = [(name, stage) for name in WRITTEN for stage in STAGES]
        writes.remove(("checkpoint_previous.pt", "not flushed"))  # it is a second name, not a copy
        self.random.shuffle(writes)
        while len(self.kills) < wanted:
            self.attempt("killed", partial(self.killed, writes=writes, last=wanted))
        for _ in range(8 * long):
            self.attempt("killed", self.kill_command)

    def killed(self, folder: Path, writes: list, last: int) -> str:
        for turn in range(len(self.kills), min(last, len(self.kills) + 4)):
            sig = self.random.choice(SIGNALS)
            if turn % 2:
                file, stage = writes[turn // 2 % len(writes)]
                count = self.random.randrange(3) if file.startswith(("metrics", "checkpo")) else 0
                outcome = run_to_end(folder, self.config, at_write(file, stage, count, kill_self(sig)))
                when = f"`{file}` {stage}"
            else:
                child, when = Child(folder, self.config), "at a random moment"
                time.sleep(self.random.uniform(0, self.seconds))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, sig)
                outcome = child.wait()
            if outcome.code == 0:  # it was done before the signal came
                break
            self.kills.append((when, sig.name))
            assert outcome.code in (-sig, 128 + sig), outcome.said
            self.look(folder)
        self.finish(folder, self.reference)
        return "recovered"

    def kill_command(self, folder: Path) -> str:
        """A kill of the true command line, from outside."""
        sig = self.random.choice(SIGNALS)
        command = [sys.executable, "-m", "snn_repro.train", *SHORT, f"hydra.run.dir={folder}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (folder / "status.json").exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0, 3 * self.seconds))
        process.send_signal(sig)
        if process.wait(120):
            self.kills.append(("the command line", sig.name))
        self.finish(folder, self.reference)
        return "recovered"

    # ------------------------------------------------------------ everything else

    def break_everything(self, long: bool) -> None:
        """Each broken thing once."""
        self.attempt("two runs at once in one folder", self.two_runs)
        self.attempt("a loader process killed", partial(self.sentence, broken=loader_that_dies))
        for how in ("truncated", "bit flipped", "emptied") if long else ("bit flipped",):
            self.attempt(f"last checkpoint {how}", partial(self.damaged, how=how))
        for name in WRITTEN if long else ("checkpoint_last.pt",):
            self.attempt(f"disk full while {name} is written", partial(self.full_disk, name=name))
        if long:
            self.attempt("500 random bits of a checkpoint flipped, one at a time", self.flips)

    def sentence(self, folder: Path, broken=None) -> str:
        """A run that must end with one sentence; returns it."""
        outcome = run_to_end(folder, self.config, broken)
        assert outcome.sentence and outcome.code == 2, f"exit code {outcome.code}: {outcome.said[-600:]}"
        return said(outcome, folder)

    def stopped(self, folder: Path) -> None:
        """An unfinished run: stopped by SIGTERM behind the metrics of an epoch."""
        stop = at_write("metrics.jsonl", "renamed", 3, kill_self(signal.SIGTERM))
        assert run_to_end(folder, self.config, stop).code == 143

    def full_disk(self, folder: Path, name: str) -> str:
        stage = "renamed" if name == checkpoint.PREVIOUS else "not flushed"
        found = self.sentence(folder, at_write(name, stage, 0, disk_full))
        assert "the disk is full" in found and not [*folder.glob("*.tmp")], found
        self.finish(folder, self.reference)
        return found

    def damaged(self, folder: Path, how: str) -> str:
        self.stopped(folder)
        path = folder / checkpoint.LAST
        data = bytearray(path.read_bytes())
        path.unlink()  # checkpoint_previous.pt may be the same file
        data[len(data) // 2] ^= 16
        path.write_bytes({"truncated": data[: len(data) // 2], "bit flipped": data, "emptied": b""}[how])
        outcome = run_to_end(folder, self.config)
        warning = next((line for line in outcome.log.splitlines() if line.startswith("warning: ")), "")
        assert outcome.code == 0 and "going on from checkpoint_previous.pt" in warning, outcome
        assert same(content(folder), self.reference), "other numbers"
        return warning.replace(str(folder.parent) + "/", "")

    def flips(self, folder: Path) -> str:
        self.stopped(folder)
        path, found = folder / checkpoint.LAST, 0
        sound, whole = path.read_bytes(), checkpoint.load(path)
        for _ in range(500):
            data, bit = bytearray(sound), self.random.randrange(8 * len(sound))
            data[bit // 8] ^= 1 << bit % 8
            (folder / "flipped.bin").write_bytes(data)
            try:
                assert same(checkpoint.load(folder / "flipped.bin"), whole), f"bit {bit} changed a value unnoticed"
            except checkpoint.CheckpointError:
                found += 1
        return f"{found} refused by checksum or format, {500 - found} in padding or dates of the archive, with no value changed"

    def two_runs(self, folder: Path) -> str:
        first = Child(folder, self.config, at_write("metrics.jsonl", "renamed", 0, lambda: time.sleep(3)))
        while not (folder / "metrics.jsonl").exists():
            assert first.running()
            time.sleep(0.01)
        found = self.sentence(folder)
        assert "in use" in found
        assert first.wait().code == 0 and same(content(folder), self.reference)
        return found


class Samples(torch.utils.data.Dataset):
    """Training samples whose loader process dies at the twentieth."""

    def __init__(self):
        self.parent = os.getpid()

    def __len__(self):
        return 300

    def __getitem__(self, i):
        if os.getpid() != self.parent and i % 20 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((1, 8, 8), i / 300), i % 10


def loader_that_dies() -> None:
    build = train.build_data

    def with_loader(config):
        built = build(config)
        built.train = LoaderBatches(Samples(), config.recipe.batch_size, seed=0, shuffle=True, workers=1)
        return built

    train.build_data = with_loader


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many processes are to be killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    arguments = parser.parse_args()
    long = arguments.kills >= 100
    os.nice(5)
    warm_up()
    with tempfile.TemporaryDirectory(prefix="snn_faults_") as folder:
        h = Harness(Path(folder), arguments.seed)
        h.break_everything(long)
        h.kill_many(arguments.kills, long)
    for (when, name), count in sorted(Counter(h.kills).items()):
        print(f"{count} killed {when} by {name}")
    print(f"{len(h.kills)} kills, {len(h.problems)} problems: {h.problems}")
    return int(bool(h.problems))


if __name__ == "__main__":
    sys.exit(main())
