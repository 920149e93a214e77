"""Kill and break trainings, and check that each goes on with the same numbers or says one clear sentence.

    python tests/faults/run.py --kills 200 --out docs/reliability.md     # the long form, some ten minutes of one core
    python tests/faults/run.py --kills 12                                # the short form of the default tests

Exit code 0 when everything was recovered. --json FILE writes the outcomes for a test to read.
"""

import argparse
import contextlib
import errno
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
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
    kill_self,
    raise_error,
    refuse_writes,
    run_to_end,
    said,
    same,
    temporary,
    torch,
    train,
    unsound,
    warm_up,
)

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
        """Runs that are killed again and again until `wanted` processes have been ended by a signal."""
        writes = [(name, stage) for name in WRITTEN for stage in STAGES]
        writes.remove(("checkpoint_previous.pt", "half written"))  # it is a second name, not a copy
        writes.remove(("checkpoint_previous.pt", "not flushed"))
        self.random.shuffle(writes)
        turn = 0
        while len(self.kills) < wanted:
            folder, killed = self.folder(), []
            for _ in range(4):
                if len(self.kills) + len(killed) >= wanted:
                    break
                name = self.random.choice(list(SIGNALS))
                if turn % 2:
                    when = writes[turn // 2 % len(writes)]
                    outcome = self._kill_in_write(folder, *when, SIGNALS[name])
                    when = f"`{when[0]}` {when[1]}"
                else:
                    when = "at a random moment"
                    outcome = self._kill_at_random(folder, SIGNALS[name])
                turn += 1
                if outcome.code not in (-SIGNALS[name], 128 + SIGNALS[name]):
                    assert outcome.code == 0, outcome.said  # it was done before the signal came
                    break
                killed.append(dict(when=when, signal=name, saved=outcome.code > 0))
                self.look(folder)
            self._recover(folder, killed)
        if long:
            for _ in range(8):
                self._kill_command()

    def _recover(self, folder: Path, killed: list[dict]) -> None:
        problem = None
        try:
            self.finish(folder, self.reference)
        except AssertionError as error:
            problem = str(error)
        self.kills += [k | dict(recovered=problem is None, problem=problem) for k in killed]
        shutil.rmtree(folder)

    def _kill_at_random(self, folder: Path, sig: int):
        child = Child(folder, self.config)
        until = child.started + self.random.uniform(0, self.seconds)
        while time.perf_counter() < until and child.running():
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, sig)
        return child.wait()

    def _kill_in_write(self, folder: Path, name: str, stage: str, sig: int):
        count = self.random.randrange(3) if name[:7] in ("metrics", "checkpo") else 0
        return run_to_end(folder, self.config, at_write(name, stage, count, kill_self(sig)))

    def _kill_command(self) -> None:
        """A kill of the true command line, from outside."""
        folder, name = self.folder(), self.random.choice(list(SIGNALS))
        command = [sys.executable, "-m", "snn_repro.train", *SHORT, f"hydra.run.dir={folder}"]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
        process = subprocess.Popen(command, **quiet)
        while not (folder / "status.json").exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(self.random.uniform(0, 3 * self.seconds))
        process.send_signal(SIGNALS[name])
        if process.wait(120) == 0:
            return
        self.look(folder)
        self._recover(
            folder, [dict(when="the command line, at a random moment", signal=name, saved=process.returncode > 0)]
        )

    # ------------------------------------------------------------ everything else

    def fault(self, what: str, check) -> None:
        """One broken thing: `check(folder)` returns what was said; AssertionError is a failure."""
        folder = self.folder()
        try:
            outcome, ok = check(folder), True
        except AssertionError as error:
            outcome, ok = f"FAILED: {error}", False
        self.look(folder)
        self.faults.append(dict(what=what, outcome=outcome, ok=ok))

    def sentence(self, folder: Path, config=None, broken=None, code=None) -> str:
        """A run that must end with one sentence; returns it."""
        outcome = run_to_end(folder, config or self.config, broken)
        assert outcome.sentence, f"exit code {outcome.code}: {outcome.said[-600:]}"
        assert code is None or outcome.code == code, outcome
        return said(outcome, folder)

    def stopped(self, folder: Path, epoch: int = 3) -> None:
        """An unfinished run: stopped by SIGTERM behind the metrics of some epoch."""
        outcome = run_to_end(
            folder, self.config, at_write("metrics.jsonl", "renamed", epoch, kill_self(signal.SIGTERM))
        )
        assert outcome.code == 143, outcome.said

    def break_everything(self, long: bool) -> None:
        if not long:
            self.fault(
                "disk full while checkpoint_last.pt is written", lambda f: self.full_disk(f, "checkpoint_last.pt")
            )
            self.fault("last checkpoint truncated", lambda f: self.damaged(f, "truncated"))
            self.fault("two runs at once in one folder", self.two_runs)
            self.fault("a loader process killed", self.dead_worker)
            self.fault("loss is not a number", self.nan)
            return
        for name in WRITTEN:
            self.fault(f"disk full while {name} is written", lambda folder, name=name: self.full_disk(folder, name))
        for name in ("truncated", "bit flipped", "emptied"):
            self.fault(f"last checkpoint {name}", lambda folder, name=name: self.damaged(folder, name))
        self.fault("both checkpoints truncated", self.both_damaged)
        self.fault("500 random bits of a checkpoint flipped, one at a time", lambda folder: self.flips(folder, 500))
        for name in ("metrics.jsonl", "result.json", "config.yaml", "status.json", "predictions.npz"):
            self.fault(f"{name} cut in half by hand", lambda folder, name=name: self.cut(folder, name))
        self.fault("metrics.jsonl removed by hand", self.metrics_removed)
        self.fault("two runs at once in one folder", self.two_runs)
        self.fault("clock set back an hour at every look", self.clock)
        self.fault("data folder read-only", self.read_only_data)
        self.fault("cache folder read-only", self.read_only_cache)
        self.fault("run folder read-only", self.read_only_run)
        self.fault("forced run killed, started again with force=true", self.forced)
        self.fault("a loader process killed", self.dead_worker)
        self.fault("run killed while its loader process lives on", self.orphan)
        self.fault("loss is not a number", self.nan)

    def full_disk(self, folder: Path, name: str) -> str:
        stage = "renamed" if name == checkpoint.PREVIOUS else "half written"
        found = self.sentence(folder, broken=at_write(name, stage, 0, raise_error(errno.ENOSPC)), code=2)
        assert "the disk is full" in found, found
        assert not temporary(folder), temporary(folder)
        self.look(folder)
        self.finish(folder, self.reference)
        return found

    def damaged(self, folder: Path, how: str) -> str:
        self.stopped(folder)
        path = folder / checkpoint.LAST
        data = bytearray(path.read_bytes())
        path.unlink()
        data[len(data) // 2] ^= 16
        path.write_bytes({"truncated": data[: len(data) // 2], "bit flipped": data, "emptied": b""}[how])
        outcome = run_to_end(folder, self.config)
        warning = next((line for line in outcome.log.splitlines() if line.startswith("warning: ")), "")
        assert outcome.code == 0 and "going on from checkpoint_previous.pt" in warning, outcome
        assert same(content(folder), self.reference), "other numbers"
        return warning.replace(str(folder.parent) + "/", "")

    def both_damaged(self, folder: Path) -> str:
        self.stopped(folder)
        for name in (checkpoint.LAST, checkpoint.PREVIOUS):
            data = (folder / name).read_bytes()
            (folder / name).unlink()
            (folder / name).write_bytes(data[:-1000])
        found = self.sentence(folder, code=2)
        assert "resume=never" in found
        self.finish(folder, self.reference, configuration("resume=never"))
        return found

    def flips(self, folder: Path, count: int) -> str:
        self.stopped(folder)
        path = folder / checkpoint.LAST
        sound, whole = path.read_bytes(), checkpoint.load(path)
        found = harmless = 0
        for _ in range(count):
            data, bit = bytearray(sound), self.random.randrange(8 * len(sound))
            data[bit // 8] ^= 1 << bit % 8
            (folder / "flipped.bin").write_bytes(data)
            try:
                assert same(checkpoint.load(folder / "flipped.bin"), whole), f"bit {bit} changed a value unnoticed"
                harmless += 1
            except checkpoint.CheckpointError:
                found += 1
        return f"{found} refused by checksum or format, {harmless} in padding or dates of the archive, with no value changed"

    def cut(self, folder: Path, name: str) -> str:
        if name in ("result.json", "predictions.npz"):
            self.finish(folder, self.reference)
        else:
            self.stopped(folder)
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        if name == "status.json":  # read by nobody but people: written anew
            self.finish(folder, self.reference)
            return "written anew"
        if name == "predictions.npz":
            (folder / "result.json").unlink()
            self.finish(folder, self.reference)
            return "written anew when result.json is removed and the command repeated"
        found = self.sentence(folder, code=2)
        if name == "config.yaml":
            self.finish(folder, self.reference, configuration("force=true"))
        elif name == "metrics.jsonl":
            self.finish(folder, self.reference, configuration("resume=never"))
        else:
            path.unlink()
            self.finish(folder, self.reference)
        return found

    def metrics_removed(self, folder: Path) -> str:
        self.stopped(folder)
        (folder / "metrics.jsonl").unlink()
        found = self.sentence(folder, code=2)
        self.finish(folder, self.reference, configuration("resume=never"))
        return found

    def two_runs(self, folder: Path) -> str:
        first = Child(folder, self.config, at_write("metrics.jsonl", "renamed", 0, lambda: time.sleep(3)))
        while not (folder / "metrics.jsonl").exists():
            assert first.running()
            time.sleep(0.01)
        found = self.sentence(folder.parent / folder.name, code=2)
        assert "in use" in found and first.running()
        assert first.wait().code == 0 and same(content(folder), self.reference)
        return found

    def clock(self, folder: Path) -> str:
        def broken():
            now = [time.time()]

            def backwards():
                now[0] -= 3600
                return now[0]

            time.time = backwards

        outcome = run_to_end(folder, self.config, broken)
        assert outcome.code == 0, outcome.said
        found = json.loads((folder / "result.json").read_text())
        assert same(content(folder), self.reference) and 0 < found["seconds"] < 60, "the clock changed the result"
        return "no effect"

    def read_only_data(self, folder: Path) -> str:
        import fixtures

        data = self.root / "data"
        data.mkdir()
        fixtures.write_cifar10(data, per_batch=20)
        config = configuration("dataset=cifar10", f"data_dir={data}", "recipe.epochs=1", "recipe.warmup_epochs=0",
                               "recipe.batch_size=16", "dataset.frame_size=8")  # fmt: skip
        outcome = run_to_end(folder, config, refuse_writes(data, errno.EROFS))
        assert outcome.code == 0, outcome.said
        return "no effect: data are only read"

    def read_only_cache(self, folder: Path) -> str:
        cache = self.root / "cache"
        cache.mkdir()
        small = ("dataset=digits_dvs", "recipe.epochs=1", "recipe.warmup_epochs=0", "debug.max_steps=1")
        config = configuration(*small, f"cache_dir={cache}")
        outcome = run_to_end(folder, config, refuse_writes(cache, errno.EROFS))
        assert outcome.code == 0 and "cannot keep frames" in outcome.said and not list(cache.iterdir()), outcome
        whole = self.finish(self.folder(), None, configuration(*small))
        assert same(content(folder), whole)
        return "one warning, and the frames are made again each time"

    def read_only_run(self, folder: Path) -> str:
        folder.mkdir()
        found = self.sentence(folder, broken=refuse_writes(folder, errno.EROFS), code=2)
        assert "read-only" in found
        return found

    def forced(self, folder: Path) -> str:
        self.finish(folder, self.reference)
        config = configuration("force=true")
        outcome = run_to_end(folder, config, at_write("metrics.jsonl", "renamed", 1, kill_self(signal.SIGKILL)))
        assert outcome.code == -9
        outcome = run_to_end(folder, config)
        assert outcome.code == 0 and "resuming at epoch" in outcome.log, outcome
        assert same(content(folder), self.reference)
        return "goes on where it was"

    def dead_worker(self, folder: Path) -> str:
        return self.sentence(folder, broken=loader(die_at=20), code=2)

    def orphan(self, folder: Path) -> str:
        broken, kill = loader(), at_write("metrics.jsonl", "renamed", 0, kill_self(signal.SIGKILL))
        outcome = run_to_end(folder, self.config, lambda: (broken(), kill()))
        assert outcome.code == -9
        outcome = run_to_end(folder, self.config, broken)  # at once: its loader takes seconds to notice
        assert outcome.code == 0, outcome.said
        return "the folder is free at once"

    def nan(self, folder: Path) -> str:
        def broken():
            step = train.Training.train_step

            def nan(self, *batch):
                loss, correct, n = step(self, *batch)
                return (loss * float("nan") if (self.epoch, self.step) == (2, 1) else loss), correct, n

            train.Training.train_step = nan

        found = self.sentence(folder, broken=broken, code=1)
        assert "checkpoint_last.pt" in found and checkpoint.load(folder / checkpoint.LAST)["epoch"] == 2
        self.finish(folder, self.reference)
        return found


def loader(die_at: int | None = None):
    """A `broken` that serves the training samples through a loader process, which dies at one of them."""

    def broken():
        from snn_repro.data.batches import LoaderBatches

        build = train.build_data
        parent = os.getpid()

        class Samples(torch.utils.data.Dataset):
            read = 0

            def __len__(self):
                return 300

            def __getitem__(self, i):
                self.read += 1
                if os.getpid() != parent and self.read == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return torch.full((1, 8, 8), i / 300), i % 10

        def with_loader(config):
            built = build(config)
            built.train = LoaderBatches(Samples(), config.recipe.batch_size, seed=0, shuffle=True, workers=1)
            return built

        train.build_data = with_loader

    return broken


# ---------------------------------------------------------------- the report


def report(h: Harness, wanted: int, seed: int, minutes: float) -> str:
    """docs/reliability.md."""
    recovered = sum(k["recovered"] for k in h.kills)
    rows = {}
    for k in h.kills:
        row = rows.setdefault(k["when"], Counter())
        row[k["signal"]] += 1
        row["saved"] += k["saved"]
        row["recovered"] += k["recovered"]
    lines = [
        "# Reliability", "",
        f"Written by `python tests/faults/run.py --kills {wanted} --seed {seed} --out docs/reliability.md`.", "",
        f"- **{recovered} of {len(h.kills)} killed processes recovered**: the same command, repeated, ended with the result, "
        "history, weights, optimiser state and predictions of an undisturbed run, equal to the last bit.",
        f"- **{len(h.corrupt)} corrupt files under a final name**: every file of the run folder was read back after every "
        "kill and every fault.",
        "- No temporary file was left behind by a finished run.",
        f"- {sum(f['ok'] for f in h.faults)} of {len(h.faults)} other faults ended in the same numbers or in one clear sentence.", "",
        f"A run here is {h.config.recipe.epochs} epochs of {h.config.debug.max_steps} steps on digits "
        f"({h.seconds:.1f} s undisturbed) with augmentation, Mixup, warm-up and an average of the weights. It is killed up to "
        "four times, in turn at a random moment and inside the write of a chosen file; half the signals are SIGKILL, half "
        "SIGTERM. The last rows are kills of the real command line; the other runs are forked from one process, which saves "
        "the start of Python. "
        f"Took {minutes:.0f} minutes with torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}, "
        f"{platform.system()} on {os.cpu_count()} cores.", "",
        "## Kills", "",
        "`half written`: half of the bytes are in the temporary file. `not flushed`: all are, before fsync. `not renamed`: "
        "after fsync. `renamed`: the file has its final name, and what follows in the program has not happened. *Saved* counts "
        "processes that had time to write a checkpoint and a status; SIGKILL leaves none.", "",
        "| killed | SIGKILL | SIGTERM | saved | recovered |", "| --- | --: | --: | --: | --: |",
    ]  # fmt: skip
    for when in sorted(rows, key=lambda w: (not w.startswith("at a"), w)):
        r = rows[when]
        total = r["SIGKILL"] + r["SIGTERM"]
        lines.append(f"| {when} | {r['SIGKILL']} | {r['SIGTERM']} | {r['saved']} | {r['recovered']} of {total} |")
    lines += ["", "## Other faults", "", "| fault | what the user sees |", "| --- | --- |"]
    lines += [f"| {f['what']} | {f['outcome'].replace('|', '/')} |" for f in h.faults]
    lines += ["", "After each of these the same command (or the one that the sentence names) ended with the numbers of an",
              "undisturbed run, where the fault leaves something to repeat."]  # fmt: skip
    if h.corrupt:
        lines += ["", "## Corrupt files", "", *[f"- {c}" for c in h.corrupt]]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many processes are to be killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--out", type=Path, help="write the report here")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    arguments = parser.parse_args()
    long, started = arguments.kills >= 100, time.perf_counter()
    os.nice(5)
    warm_up()
    with tempfile.TemporaryDirectory(prefix="snn_faults_") as folder:
        h = Harness(Path(folder), arguments.seed)
        h.break_everything(long)
        h.kill_many(arguments.kills, long)
    lost = [k for k in h.kills if not k["recovered"]]
    broken = [f for f in h.faults if not f["ok"]]
    text = report(h, arguments.kills, arguments.seed, (time.perf_counter() - started) / 60)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)
    else:
        print(text)
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(kills=h.kills, faults=h.faults, corrupt=h.corrupt)))
    for problem in [*lost, *broken, *h.corrupt]:
        print(problem, file=sys.stderr)
    return 1 if lost or broken or h.corrupt else 0


if __name__ == "__main__":
    sys.exit(main())
