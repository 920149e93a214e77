"""Hold the numbers of short runs against those of the commit before: where they moved, provenance.MOVED must say so.

python tests/numbers_since.py            against HEAD^; another COMMIT may be given
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHORT = (
    "recipe.batch_size=4", "recipe.eval_batch_size=4", "recipe.epochs=1", "recipe.amp=off", "timesteps=2", "debug.max_steps=1",
    "debug.max_eval_batches=1", "threads=1", "kernels=off", "logger.mode=disabled",
)  # fmt: skip
SMALL = ("dataset=digits", "model=small", "neuron=lif", "loss=tet")
NUMBERS = ("loss_last", "train_loss_last", "acc_step", "firing_rates", "params_weights", "params_imp", "split_sha256")


def record(file: str) -> None:
    """Train every neuron, loss, norm, surrogate and a network a family alone, by the package that PYTHONPATH names."""
    from snn_repro.config import choices, load_config, to_dict
    from snn_repro.errors import UserError
    from snn_repro.registry import NORMS, SURROGATES
    from snn_repro.train import run

    networks = {name.split("_")[0]: name for name in sorted(choices("model"), key=lambda name: ("cifar" in name, name))}
    alone = [(axis, name) for axis in ("neuron", "loss") for name in choices(axis)]
    cells = [[f"{axis}={name}"] for axis, name in alone if name == "lif_imp" or not name.endswith("_imp")]
    cells += [[f"model={name}"] for name in networks.values()]
    cells += [[f"model.norm={name}"] for name in NORMS] + [[f"neuron.surrogate={name}"] for name in SURROGATES]
    cells += [
        ["dataset=digits_dvs", "kernels=auto", "model.conv_backend=sparse"],
        ["augment.mixup=0.2", "augment.crop_padding=1"],
    ]
    found = {}
    for i, words in enumerate(cells):
        place = f"hydra.run.dir={Path(file).parent / f'{Path(file).stem}{i}'}"
        try:
            config = load_config([*SMALL, *SHORT, *words, place])
            result = run(config)
        except UserError:  # a network that 8 x 8 pixels do not fit
            continue
        found[" ".join(words)] = dict(config=to_dict(config), numbers={key: result[key] for key in NUMBERS})
    Path(file).write_text(json.dumps(found))


def unannounced(before: dict, after: dict, version: int) -> list[str]:
    """The runs whose numbers differ from those of `version`, and MOVED does not say it."""
    from snn_repro.paper.differences import is_older

    made = {name: run | {"code": {"numbers": version}} for name, run in before.items()}
    return [
        name for name in before if before[name]["numbers"] != after.get(name, {}).get("numbers") and not is_older(made[name])
    ]  # fmt: skip


def main(commit: str = "HEAD^") -> int:
    git = ["git", "-C", str(ROOT)]
    if subprocess.run(
        [*git, "rev-parse", "-q", "--verify", f"{commit}^{{commit}}"], stdout=subprocess.DEVNULL
    ).returncode:
        print(f"there is no commit {commit} here: the numbers are held against nothing")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        base, found = Path(folder, "tree"), []
        subprocess.run([*git, "worktree", "add", "-q", "--detach", str(base), commit], check=True)
        try:
            for tree, name in ((base, "before"), (ROOT, "after")):
                environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
                file = Path(folder, f"{name}.json")
                words = [sys.executable, __file__, "record", str(file)]
                subprocess.run(words, env=environment, cwd=tree, check=True, stdout=subprocess.DEVNULL)
                found.append(json.loads(file.read_text()))
            program = "from snn_repro import provenance; print(getattr(provenance, 'NUMBERS', 1))"
            environment = os.environ | {"PYTHONPATH": str(base)}
            version = subprocess.check_output([sys.executable, "-c", program], env=environment, cwd=base)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(base)], check=True)
    moved = unannounced(*found, int(version))
    print(f"{len(found[0])} runs; moved without a line in provenance.MOVED: {', '.join(moved) or 'none'}")
    return int(bool(moved))


if __name__ == "__main__":
    sys.exit(record(sys.argv[2]) if sys.argv[1:2] == ["record"] else main(*sys.argv[1:]))
