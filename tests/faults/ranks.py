"""Several processes on one machine, for tests/test_distributed.py: runs every scenario and prints what came out as JSON.

They meet as under torchrun (RANK, WORLD_SIZE, ...) or srun (SLURM_PROCID, ...), over gloo on the CPU, but are forked
from one process that has imported torch.
"""

import json
import os
import signal
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

from runs import Child, Outcome, checkpoint, configuration, np, torch, train, warm_up

from snn_repro.errors import DataError

SHARED = ("recipe.sync_bn=true", "dataset.train_subset=121", "recipe.epochs=3", "debug.max_steps=0",
          "debug.max_eval_batches=4", "recipe.eval_batch_size=4")  # fmt: skip
# 111 training samples: the last batch of 15 is shared as 8 + 7; cropped and mixed as one process does it


def place(rank: int, size: int, port: int, slurm: bool) -> dict[str, str]:
    if slurm:
        names, more = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"), {"SLURM_JOB_ID": str(port)}
    else:
        names, more = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return dict(zip(names, map(str, (rank, size, rank)), strict=True)) | more


def together(
    folder: Path, config, size: int, broken=lambda rank: None, slurm: bool = False, double: bool = True
) -> list[Outcome]:
    """A run of `size` processes, to its end. `broken(rank)` is called in each before it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def prepare(rank: int):
        def before():
            if size > 1:
                os.environ.update(place(rank, size, port, slurm))
            if double:
                in_double()
            print_steps()
            thirteen_of_validation()
            broken(rank)

        return before

    children = [Child(folder, config, prepare(rank), f".{rank}") for rank in range(size)]
    return [child.wait(300) for child in children]


def in_double() -> None:
    """Networks and inputs in float64: rounding then moves no spike, and one process can be compared with two."""
    from snn_repro.data import batches

    finish = batches._Ordered._finish
    torch.set_default_dtype(torch.float64)

    def double(*args):
        x, target = finish(*args)
        return x.double(), target

    batches._Ordered._finish = double


def thirteen_of_validation() -> None:
    """In batches of 4 two processes have 7 and 6 of them, in 4 and 3 batches."""
    from snn_repro import data

    build = train.build_data

    def shorter(config):
        built = build(config)
        built.val = data.MemoryBatches(built.val.inputs, built.val._targets, 4, indices=range(13))
        return built

    train.build_data = shorter


def print_steps() -> None:
    tally = train.Training.tally

    def printing(self, pending):
        before = dict(self.sums)
        tally(self, pending)
        n = self.sums["n"] - before["n"]
        if n:
            print("STEP", self.epoch, self.step, (self.sums["loss"] - before["loss"]) / n, n, flush=True)

    train.Training.tally = printing


def at_step(epoch: int, step: int, by: int, act):
    """A `broken`: process `by` calls `act` instead of this step, whose (loss, correct, n) it returns."""

    def broken(rank: int):
        real = train.Training.train_step

        def acting(self, *batch):
            found = real(self, *batch)
            return act(*found) if rank == by and (self.epoch, self.step) == (epoch, step) else found

        train.Training.train_step = acting

    return broken


def stop_at(epoch: int, step: int, by: int):
    """A `broken`: process `by`, and it alone, gets a SIGTERM in this step."""
    return at_step(epoch, step, by, lambda *found: (os.kill(os.getpid(), signal.SIGTERM), found)[1])


def unreadable(*_):
    raise DataError("image_7.png is cut short at byte 17")


def found(folder: Path, outcomes: list[Outcome]) -> dict:
    """Exit codes, what was said, the loss of every step, and what the folder holds."""
    answer = dict(codes=[o.code for o in outcomes], said=[o.said for o in outcomes], steps=[], files=[])
    for line in outcomes[0].log.splitlines():
        if line.startswith("STEP "):
            epoch, step, loss, n = line.split()[1:]
            answer["steps"].append([int(epoch), int(step), float(loss), int(n)])
    answer["others_printed"] = [
        line for o in outcomes[1:] for line in o.log.splitlines() if not line.startswith("STEP ")
    ]
    if folder.exists():
        answer["files"] = sorted(p.name for p in folder.iterdir())
        answer["status"] = json.loads((folder / "status.json").read_text())
    if (folder / "result.json").exists():
        answer["result"] = json.loads((folder / "result.json").read_text())
        with np.load(folder / "predictions.npz") as arrays:
            answer["label"], answer["logits"] = arrays["label"].tolist(), arrays["logits"].tolist()
        answer["processes"] = json.loads((folder / "environment.json").read_text())["processes"]
    return answer


def norms(folder: Path) -> dict:
    """Largest difference of output and gradients between a norm or loss over two processes and one over all samples."""
    script = folder.with_name("norms.json")

    def compare(rank: int):
        def before():
            from snn_repro import distributed
            from snn_repro.losses import build_loss
            from snn_repro.models.norms import NORMS, synchronise

            os.environ.update(place(rank, 2, 29811, False))
            distributed.start("cpu")
            torch.set_default_dtype(torch.float64)
            differences = {}
            for name, norm in NORMS.items():
                make = partial(norm, 3, 4)
                torch.manual_seed(0)
                x, weight = torch.randn(4, 5, 3, 2, 2), torch.randn(4, 5, 3, 2, 2)
                whole, shared = make(), make()
                synchronise(shared)
                assert list(shared.state_dict()) == list(whole.state_dict())
                a, b = x.clone().requires_grad_(), x[:, rank::2].clone().requires_grad_()  # 3 and 2 samples
                out = whole(a)
                (out * weight).sum().backward()
                mine = shared(b)
                (mine * weight[:, rank::2]).sum().backward()
                gap = max((out[:, rank::2] - mine).abs().max(), (a.grad[:, rank::2] - b.grad).abs().max())
                for p, q in zip(whole.parameters(), shared.parameters(), strict=True):
                    torch.distributed.all_reduce(q.grad)
                    gap = max(gap, (p.grad - q.grad).abs().max())
                for p, q in zip(whole.buffers(), shared.buffers(), strict=True):
                    gap = max(gap, (p - q).abs().max())
                whole.eval(), shared.eval()
                gap = max(gap, (whole(x) - shared(x)).abs().max())
                differences[name] = float(gap)
            y, labels = torch.randn(4, 5, 6) * 2, torch.arange(5)
            y[:, 0] += 9 * torch.eye(6)[:4]  # on one process alone the sure steps are others than on both
            for name in ("strong2weak", "weak2strong"):
                a, b = y.clone().requires_grad_(), y[:, rank::2].clone().requires_grad_()
                build_loss(name)(a, labels).backward()
                (build_loss(name)(b, labels[rank::2]) * b.shape[1] / 5).backward()
                differences[name] = float((a.grad[:, rank::2] - b.grad).abs().max())
            if rank == 0:
                script.write_text(json.dumps(differences))
            os._exit(0)

        return before

    children = [Child(folder, configuration(), compare(rank), f".{rank}") for rank in range(2)]
    outcomes = [child.wait(300) for child in children]
    assert not any(o.code for o in outcomes), outcomes
    return json.loads(script.read_text())


def main() -> None:
    warm_up()
    config, answers = configuration(*SHARED), {}
    with tempfile.TemporaryDirectory(prefix="snn_ranks_") as root:
        root = Path(root)

        def scenario(name: str, size: int, config=config, folder: str | None = None, **options) -> None:
            place = root / (folder or name)
            answers[name] = found(place, together(place, config, size, **options))

        answers["norms"] = norms(root / "norms")
        scenario("one", 1)
        scenario("two", 2)
        scenario("two by srun, in single precision", 2, slurm=True, double=False)
        scenario("one in single precision", 1, double=False)
        parts = configuration(*SHARED, "recipe.accumulate=2")
        scenario("one, accumulated", 1, parts)
        scenario("two, accumulated", 2, parts)
        scenario("2 -> 1 -> 2: first", 2, folder="resumed", broken=stop_at(0, 1, by=1))
        scenario("2 -> 1 -> 2: second", 1, folder="resumed", broken=stop_at(1, 2, by=0))
        saved = checkpoint.load(root / "resumed" / checkpoint.LAST)
        answers["saved"] = [saved["epoch"], saved["step"], saved["sums"]["n"]]
        scenario("2 -> 1 -> 2: third", 2, folder="resumed")
        scenario("finished", 2, folder="resumed")
        scenario("not divisible", 2, configuration(*SHARED, "recipe.batch_size=31"))
        nan = at_step(1, 0, 1, lambda loss, correct, n: (loss * float("nan"), correct, n))
        scenario("nan on one", 2, broken=nan)
        scenario("unreadable on one", 2, broken=at_step(1, 0, 1, unreadable))
        scenario("killed one", 2, broken=at_step(1, 0, 1, lambda *_: os.kill(os.getpid(), signal.SIGKILL)))
        scenario("killed one, repeated", 2, folder="killed one")
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
