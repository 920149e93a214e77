"""The numbers of a fixed list of short runs, to be held against those of another state of the code on the same machine.

python tests/same_numbers.py record FILE     train them all (a few minutes) and write their numbers, to the last bit
python tests/same_numbers.py compare FILE... train them again and name each number that differs; exit code 1 if any does

Every neuron x loss of the paper on digits and digits_dvs, every other choice alone on digits, and a row of the paper (on small
files in its data set's format) a data set.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "scripts")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fixtures import event_sets, image_sets  # noqa: E402
from fixtures import make_cache as prepare  # noqa: E402

from snn_repro.config import load_config  # noqa: E402
from snn_repro.train import run  # noqa: E402
from studies import methods  # noqa: E402

NEURONS = ("if", "if_imp", "lif", "lif_imp", "leaky", "leaky_imp")
LOSSES = ("sdt", "tet", "tet_s", "lts")
ROWS = {
    "table1_cifar10_sdt": "cifar10", "table1_cifar100_sdt": "cifar100", "table1_imagenet100_sdt": "imagenet100",
    "table3_sew_r18_lts": "imagenet1k", "table2_cifar10dvs48_t8_imp_tet_s": "cifar10_dvs",
    "table1_dvs_gesture_tet": "dvs_gesture", "table2_ncaltech48_t10_imp": "ncaltech101",
}  # fmt: skip
SHORT = [
    "logger.mode=disabled", "debug.max_eval_batches=2", "threads=1",
    "kernels=sparse",  # auto goes by what was measured on the machine, which may round differently another day
]  # fmt: skip
NUMBERS = (
    "acc_last", "acc_best_test", "acc_last10_mean", "acc_step", "acc_cum", "correct", "n_test", "loss_last",
    "train_loss_last", "train_acc_last", "firing_rates", "params_weights", "params_imp", "split_id", "split_sha256",
)  # fmt: skip


def words(root: Path) -> dict[str, list[str]]:
    """{name of a run: its overrides}; the rows' files are made below `root`."""
    found = {}
    for data in ("digits", "digits_dvs"):
        for neuron in NEURONS:
            for loss in LOSSES:
                found[f"{data} {neuron} {loss}"] = [
                    f"dataset={data}", f"neuron={neuron}", f"loss={loss}", "recipe.epochs=2", "debug.max_steps=5",
                    "dataset.validation=0.1", "augment.crop_padding=1", "augment.mixup=0.2",
                ]  # fmt: skip
    for axis, choice in methods.cells(methods.part("digits")):
        if axis and f"digits {choice} sdt" not in found:
            about = methods.axes()[axis]
            found[f"digits {axis}={choice}"] = [
                f"{about.key}={choice}", *about.more, *([] if axis == "neuron" else ["neuron=if"]),
                *([] if axis == "loss" else ["loss=sdt"]), "recipe.epochs=2", "debug.max_steps=4",
            ]  # fmt: skip
    for row, data in ROWS.items():
        raw, cache = root / "raw" / data, root / "cache"
        (getattr(event_sets, f"write_{data}", None) or getattr(image_sets, f"write_{data}", image_sets.write_imagenet))(
            raw
        )
        config = load_config([f"experiment={row}", f"data_dir={raw}", f"cache_dir={cache}"])
        if hasattr(event_sets, f"write_{data}"):
            prepare(
                data, raw, cache, config.timesteps, frame_size=config.dataset.frame_size, workers=0, say=lambda _: None
            )
        found[row] = [
            f"experiment={row}", f"data_dir={raw}", f"cache_dir={cache}", "debug=smoke", "recipe.batch_size=4",
            "recipe.accumulate=1", "recipe.eval_batch_size=2", "dataset.workers=0",
            *(["model.weights=null"] if config.model.weights else []),
        ]  # fmt: skip
    return found


def numbers(root: Path) -> dict[str, dict]:
    """{name of a run: its losses, metrics and the hashes of its logits and weights}."""
    found = {}
    for i, (name, overrides) in enumerate(words(root).items()):
        folder = root / f"run{i}"
        result = run(load_config([*overrides, *SHORT, f"hydra.run.dir={folder}"]))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        with np.load(folder / "predictions.npz") as saved:
            logits = hashlib.sha256(saved["logits"].tobytes()).hexdigest()
        weights = hashlib.sha256()
        for value in torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"].values():
            weights.update(value.contiguous().numpy().tobytes())
        found[name] = {
            "losses": [[line["train_loss"], line["loss"], line.get("val_loss")] for line in lines],
            "logits": logits, "weights": weights.hexdigest(), **{k: result[k] for k in NUMBERS},
        }  # fmt: skip
        print(f"{name}: loss {lines[-1]['train_loss']:.6f}", flush=True)
    return found


def main(what: str, *files: str) -> int:
    with tempfile.TemporaryDirectory() as root:
        found = json.loads(json.dumps(numbers(Path(root))))
    if what == "record":
        Path(files[0]).write_text(json.dumps({"numbers": found}, indent=1))
        return 0
    return max(held_against(json.loads(Path(file).read_text())["numbers"], found) for file in files)


def held_against(before: dict[str, dict], found: dict[str, dict]) -> int:
    differs = [
        f"{name}: {key}: {before[name][key]} -> {found.get(name, {}).get(key)}"
        for name in before
        for key in before[name]
        if found.get(name, {}).get(key) != before[name][key]
    ]
    print("\n".join(differs) or f"all numbers of {len(before)} runs are the same")
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
