"""Kill and break trainings, and check that each goes on with the same numbers or says one clear sentence.

    python tests/faults/run.py --kills 200     # the long form, some ten minutes of one core: docs/reliability.md
    python tests/faults/run.py --kills 12      # the short form of the default tests

Exit code 0 when everything was recovered. --json FILE writes the outcomes for a test to read.
"""

import argparse
import contextlib
import json
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
    temporary,
    torch,
    train,
    unsound,
    warm_up,
)

from snn_repro.data.batches import LoaderBatches

ROOT = Path(__file__).parents[2]
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}


class Harness:
    """What all parts share: a folder, a random generator, the numbers of an undisturbed run, and the outcomes."""

    def __init__(self, root: Path, seed: int):
        self.root, self.random = root, random.Random(seed)
        self.config = configuration()
        self.kills: list[dict] = []  # when, signal, recovered
        self.faults: list[dict] = []  # what, outcome, ok
        self.corrupt: list[str] = []
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
        self.corrupt += [f"{folder.name}: {bad}" for bad in unsound(folder)]

    def finish(self, folder: Path, reference: dict | None, config=None) -> dict:
        """Run to the end; the numbers. Raises AssertionError when they are not those of the reference."""
        outcome = run_to_end(folder, config or self.config)
        assert outcome.code == 0, outcome.said
        self.look(folder)
        assert not temporary(folder), temporary(folder)
        found = content(folder)
        assert reference is None or same(found, reference), f"{folder}: other numbers than an undisturbed run"
        return found

    # ------------------------------------------------------------ kills

    def kill_many(self, wanted: int, long: bool) -> None:
        """Runs that are killed up to four times, in turn at a random moment and inside a chosen write."""
        writes = [(name, stage) for name in WRITTEN for stage in STAGES]
        writes.remove(("checkpoint_previous.pt", "not flushed"))  # it is a second name, not a copy
        self.random.shuffle(writes)
        while len(self.kills) < wanted:
            folder, killed = self.folder(), list[dict]()
            for turn in range(len(self.kills), min(wanted, len(self.kills) + 4)):
                name, sig = self.random.choice([*SIGNALS.items()])
                if turn % 2:
                    file, stage = writes[turn // 2 % len(writes)]
                    count = self.random.randrange(3) if file.startswith(("metrics", "checkpo")) else 0
                    outcome, when = (
                        run_to_end(folder, self.config, at_write(file, stage, count, kill_self(sig))),
                        f"`{file}` {stage}",
                    )
                else:
                    child, when = Child(folder, self.config), "at a random moment"
                    time.sleep(self.random.uniform(0, self.seconds))
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, sig)
                    outcome = child.wait()
                if outcome.code == 0:  # it was done before the signal came
                    break
                assert outcome.code in (-sig, 128 + sig), outcome.said
                killed.append(dict(when=when, signal=name, saved=outcome.code > 0))
                self.look(folder)
            self.recover(folder, killed)
        for _ in range(8 * long):
            self.kill_command()

    def recover(self, folder: Path, killed: list[dict]) -> None:
        problem = None
        try:
            self.finish(folder, self.reference)
        except AssertionError as error:
            problem = str(error)
        self.kills += [k | dict(recovered=problem is None, problem=problem) for k in killed]
        shutil.rmtree(folder)

    def kill_command(self) -> None:
        """A kill of the true command line, from outside."""
        folder, (name, sig) = self.folder(), self.random.choice([*SIGNALS.items()])
        command = [sys.executable, "-m", "snn_repro.train", *SHORT, f"hydra.run.dir={folder}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        while not (folder / "status.json").exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0, 3 * self.seconds))
        process.send_signal(sig)
        if process.wait(120):
            self.look(folder)
            self.recover(folder, [dict(when="the command line", signal=name, saved=process.returncode > 0)])

    # ------------------------------------------------------------ everything else

    def break_everything(self, long: bool) -> None:
        """Each broken thing once: `check(folder)` returns what was said; AssertionError is a failure."""
        checks = {
            "two runs at once in one folder": self.two_runs,
            "a loader process killed": lambda f: self.sentence(f, loader_that_dies, code=2),
        }
        for how in ("truncated", "bit flipped", "emptied") if long else ("bit flipped",):
            checks[f"last checkpoint {how}"] = partial(self.damaged, how=how)
        for name in WRITTEN if long else ("checkpoint_last.pt",):
            checks[f"disk full while {name} is written"] = partial(self.full_disk, name=name)
        if long:
            checks["500 random bits of a checkpoint flipped, one at a time"] = self.flips
        for what, check in checks.items():
            folder = self.folder()
            try:
                outcome, ok = check(folder), True
            except AssertionError as error:
                outcome, ok = f"FAILED: {error}", False
            self.look(folder)
            self.faults.append(dict(what=what, outcome=outcome, ok=ok))

    def sentence(self, folder: Path, broken=None, code=None) -> str:
        """A run that must end with one sentence; returns it."""
        outcome = run_to_end(folder, self.config, broken)
        assert outcome.sentence, f"exit code {outcome.code}: {outcome.said[-600:]}"
        assert code is None or outcome.code == code, outcome
        return said(outcome, folder)

    def stopped(self, folder: Path) -> None:
        """An unfinished run: stopped by SIGTERM behind the metrics of an epoch."""
        stop = at_write("metrics.jsonl", "renamed", 3, kill_self(signal.SIGTERM))
        assert run_to_end(folder, self.config, stop).code == 143

    def full_disk(self, folder: Path, name: str) -> str:
        stage = "renamed" if name == checkpoint.PREVIOUS else "not flushed"
        found = self.sentence(folder, at_write(name, stage, 0, disk_full), code=2)
        assert "the disk is full" in found and not temporary(folder), found
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
        found = self.sentence(folder, code=2)
        assert "in use" in found
        assert first.wait().code == 0 and same(content(folder), self.reference)
        return found


class Samples(torch.utils.data.Dataset):
    """Training samples whose loader process dies at the twentieth."""

    def __init__(self):
        self.parent, self.read = os.getpid(), 0

    def __len__(self):
        return 300

    def __getitem__(self, i):
        self.read += 1
        if os.getpid() != self.parent and self.read == 20:
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
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    arguments = parser.parse_args()
    long = arguments.kills >= 100
    os.nice(5)
    warm_up()
    with tempfile.TemporaryDirectory(prefix="snn_faults_") as folder:
        h = Harness(Path(folder), arguments.seed)
        h.break_everything(long)
        h.kill_many(arguments.kills, long)
    for (when, name), count in sorted(Counter((k["when"], k["signal"]) for k in h.kills).items()):
        print(f"{count} killed {when} by {name}")
    print("\n".join(f"{f['what']}: {f['outcome']}" for f in h.faults))
    problems = [*(k for k in h.kills if not k["recovered"]), *(f for f in h.faults if not f["ok"]), *h.corrupt]
    print(f"{len(h.kills)} kills and {len(h.faults)} other faults, {len(problems)} problems: {problems}")
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(kills=h.kills, faults=h.faults, corrupt=h.corrupt)))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
