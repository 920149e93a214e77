"""snn-verify: an honest run passes every check, each of many forgeries fails one, and an archive can do no harm."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml
from scripts_of_ours import script

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.provenance import NUMBERS
from snn_repro.runs import checkpoint
from snn_repro.train import run
from snn_repro.trained import verify as v

TYPED = ["logger.mode=disabled", "recipe.epochs=3", "debug.max_steps=4", "energy=true"]


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest") / "run"
    run(load_config(TYPED), str(folder), TYPED)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other") / "run"
    run(load_config([*TYPED, "seed=1"]), str(folder), [*TYPED, "seed=1"])
    return folder


@pytest.fixture
def forged(honest, tmp_path):
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


def result(**new):
    """A forgery: other values in result.json; a function gets the old one."""

    def forge(folder, other):
        content = json.loads((folder / "result.json").read_text())
        for key, value in new.items():
            content[key] = value(content[key]) if callable(value) else value
        (folder / "result.json").write_text(json.dumps(content))

    return forge


def history(epoch, **new):
    """A forgery: other values in a line of metrics.jsonl."""

    def forge(folder, other):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for key, value in new.items():
            lines[epoch][key] = value(lines[epoch][key])
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    return forge


def both(*forgeries):
    return lambda folder, other: [forge(folder, other) for forge in forgeries] and None


def predictions(change):
    def forge(folder, other):
        with np.load(folder / "predictions.npz") as arrays:
            kept = {name: arrays[name].copy() for name in arrays}
        change(kept)
        np.savez_compressed(folder / "predictions.npz", **kept)

    return forge


def weights(name, change):
    def forge(folder, other):
        content = checkpoint.load(folder / name)
        change(content)
        torch.save(content, folder / name)

    return forge


def config(key, value, everywhere=False):
    """A forgery: another value in config.yaml, and in the result and the checkpoints."""
    group, _, last = key.rpartition(".")

    def put(content):
        (content[group] if group else content)[last] = value

    def forge(folder, other):
        content = yaml.safe_load((folder / "config.yaml").read_text())
        put(content)
        (folder / "config.yaml").write_text(yaml.safe_dump(content))
        if everywhere:
            from snn_repro.config import checked, config_hash

            made = checked(content)
            hashes = dict(
                config_hash=config_hash(made), recipe_hash=config_hash(made, without=("seed",)), config=content
            )
            top = {last: value} if key in ("seed", "name") else {}
            result(**hashes, **top)(folder, other)
            for name in checkpoint.FILES[:3]:
                weights(name, lambda c: put(c["config"]))(folder, other)

    return forge


def taken(*names):
    """A forgery: files of a run with another seed."""
    return lambda folder, other: [shutil.copy(other / name, folder / name) for name in names] and None


def removed(name):
    return lambda folder, other: (folder / name).unlink()


def add(x):
    return lambda value: value + x


def bent(curve):
    return [curve[0] + 0.05, *curve[1:]]


def swap_labels(arrays):
    arrays["label"][:9] = arrays["label"][:9][::-1]


def right_more(arrays):
    wrong = np.flatnonzero(arrays["logits"][:, -1].argmax(-1) != arrays["label"])[:9]
    arrays["logits"][wrong, -1, arrays["label"][wrong]] += 99


def move(content):
    name = next(iter(content["model"]))
    content["model"][name] += 0.01


FORGERIES = {
    "accuracy": result(acc_last=add(0.05)),
    "accuracy, with the count": result(acc_last=0.96, correct=432),
    "best accuracy": result(acc_best_test=add(0.01)),
    "best epoch": result(acc_best_test_epoch=add(-1)),
    "validation's epoch": result(acc_valsel_epoch=lambda e: 1 + e % 3),
    "validation's accuracy": result(acc_valsel=add(0.02)),
    "accuracy on the validation part": result(acc_val=add(0.02)),
    "mean of ten epochs": result(acc_last10_mean=add(0.01)),
    "curve": result(acc_step=bent),
    "curve of means": result(acc_cum=bent),
    "curve, in metrics too": both(result(acc_step=bent), history(-1, acc_step=bent)),
    "accuracy everywhere": both(
        result(acc_last=0.98, correct=441, acc_best_test=0.98, acc_best_test_epoch=3), history(-1, acc=lambda _: 0.98)
    ),
    "an earlier epoch": history(1, acc=add(0.1)),
    "an earlier curve": history(1, acc_step=bent),
    "loss": both(result(loss_last=add(-0.1)), history(-1, loss=add(-0.1))),
    "training loss": both(result(train_loss_last=add(-0.1)), history(-1, train_loss=add(-0.1))),
    "training accuracy": both(result(train_acc_last=add(0.01)), history(-1, train_acc=add(0.01))),
    "validation in metrics": history(-1, val_loss=add(-0.1)),
    "firing rates": both(*(f(firing_rates=lambda r: {k: x / 2 for k, x in r.items()}) for f in (
        lambda **new: result(**new), lambda **new: history(-1, **new)))),
    "energy": result(energy=lambda e: {k: x / 2 if isinstance(x, float) else x for k, x in e.items()}),
    "readout": result(readout="mean"),
    "parameters": result(params_weights=add(-1000)),
    "IMP": result(params_imp=0),
    "training samples": result(n_train=add(-100)),
    "test samples": result(n_test=add(-50), correct=add(0)),
    "a split's name": result(split_id="other"),
    "a split's hash": result(split_sha256="0" * 64),
    "causal": result(causal=False),
    "fingerprint": result(data=lambda d: {k: "0" * 64 for k in d}),
    "a future version of the numbers": result(code=lambda c: c | {"numbers": NUMBERS + 1}),
    "a package from outside": result(code=lambda c: c | {"outside": {"faster": "1.0"}}),
    "time steps": result(timesteps=5, acc_step=lambda a: [*a, a[-1]], acc_cum=lambda a: [*a, a[-1]]),
    "seed in the result": result(seed=7),
    "name in the result": result(name="table1_cifar10_lts"),
    "hash": result(config_hash="0" * 16),
    "learning rate": config("recipe.lr", 0.5),
    "learning rate everywhere": config("recipe.lr", 0.5, everywhere=True),
    "seed everywhere": both(config("seed", 7, everywhere=True), lambda f, o: (f / "overrides.yaml").write_text(
        yaml.safe_dump([*TYPED, "seed=7"]))),
    "another split everywhere": both(config("dataset.split_seed", 7, everywhere=True), lambda f, o: (
        f / "overrides.yaml").write_text(yaml.safe_dump([*TYPED, "dataset.split_seed=7"]))),
    "overrides": lambda folder, other: (folder / "overrides.yaml").write_text(yaml.safe_dump([*TYPED, "loss=sdt"])),
    "labels swapped": predictions(swap_labels),
    "outputs made right": predictions(right_more),
    "outputs scaled": predictions(lambda a: a.update(logits=a["logits"] * 3)),
    "fewer outputs": predictions(lambda a: a.update(label=a["label"][:400], logits=a["logits"][:400])),
    "another seed's last weights": taken(checkpoint.LAST),
    "another seed's checkpoints": taken(*checkpoint.FILES[:3]),
    "another seed's outputs": taken("predictions.npz"),
    "another seed's metrics": taken("metrics.jsonl"),
    "last weights moved": weights(checkpoint.LAST, move),
    "best weights moved": weights(checkpoint.BEST, lambda c: [x.zero_() for x in c["model"].values()]),
    "previous weights moved": weights(checkpoint.PREVIOUS, lambda c: [x.zero_() for x in c["model"].values()]),
    "an epoch picked": weights(checkpoint.LAST, lambda c: c.update(epoch=2)),
    "a line of metrics lost": lambda folder, other: (folder / "metrics.jsonl").write_text(
        "".join((folder / "metrics.jsonl").read_text().splitlines(keepends=True)[1:])),
    "outputs lost": removed("predictions.npz"),
    "configuration lost": removed("config.yaml"),
    "a longer curve in metrics": history(-1, acc_step=lambda a: [*a, 1.0]),
    "a word in metrics": history(-1, loss=lambda _: "low"),
    "a cut checkpoint": lambda folder, other: os.truncate(folder / checkpoint.LAST, 5000),
}  # fmt: skip


def no(checks):
    return {check.name: check.why for check in checks if check.verdict is False}


def test_an_honest_run(honest):
    before = {p.name: p.read_bytes() for p in honest.iterdir()}
    checks = v.verify(honest)
    assert [c.name for c in checks] == ["configuration", "numbers", "data", "records", "test", "training"]
    assert checks[-1].verdict and not no(checks)
    assert all("equal to the last bit" in check.why for check in checks[-2:])
    assert {p.name: p.read_bytes() for p in honest.iterdir()} == before


@pytest.mark.parametrize(
    "name", [name if i % 8 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(FORGERIES)]
)
def test_a_forgery_is_found(name, forged, other):
    FORGERIES[name](forged, other)
    found = v.verify(forged, training="none")
    assert no(found or []) or no(v.verify(forged)), name


def test_an_epoch_that_only_the_whole_run_shows(honest, forged, tmp_path):
    history(0, loss=add(-0.1))(forged, None)
    assert not no(v.verify(forged)) and "training" in no(v.verify(forged, training="whole"))
    assert not no(v.verify(honest, training="whole"))


def test_an_archive(honest, forged, tmp_path, entered):
    file = v.pack(honest, tmp_path / "packed.zip")
    assert file.stat().st_size < (honest / checkpoint.LAST).stat().st_size * 1.5
    checks = v.verify(file)
    assert not no(checks) and checks[-1].why == "weights, results and outputs are equal to the last bit"
    result(acc_last=0.97)(forged, None)
    assert no(v.verify(v.pack(forged, tmp_path / "forged.zip"), training="none"))
    weights(checkpoint.LAST, move)(forged, None)
    assert "training" in no(v.verify(v.pack(forged, tmp_path / "moved.zip")))
    code, out, _ = entered(v.entry, file, "--quick")
    assert code == 0 and out.count("\n") == 6 and out.startswith("yes ")
    code, out, _ = entered(v.entry, tmp_path / "forged.zip", "--quick", "--json")
    assert code == 1 and not json.loads(out)["verified"]


def test_archives_of_strangers(honest, tmp_path, monkeypatch):
    good = v.pack(honest, tmp_path / "good.zip")

    def other_archive(change):
        file = tmp_path / "bad.zip"
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(file, "w") as new:
            change({name: old.read(name) for name in old.namelist()}, new)
        return file

    def with_entry(name):
        return lambda old, new: [new.writestr(n, c) for n, c in (old | {name: b"x"}).items()]

    for name in ("../outside", "/tmp/outside", "model.pkl", "run/config.yaml"):
        with pytest.raises(UserError, match="does not write"):
            v.verify(other_archive(with_entry(name)))
    assert not (tmp_path.parent / "outside").exists()
    with pytest.raises(UserError, match="not the file that was packed"):
        v.verify(other_archive(with_entry("config.yaml")))
    with pytest.raises(UserError, match="no archive"):
        v.verify(other_archive(lambda old, new: [new.writestr(n, c) for n, c in old.items() if n != v.HASHES]))
    monkeypatch.setattr(v, "LARGEST", 1000)
    with pytest.raises(UserError, match="unpacks to more"):
        v.verify(good)


def test_words_that_it_does_not_know(honest, tmp_path):
    with pytest.raises(UserError, match="recipe.lr=1 cannot be changed"):
        v.verify(honest, ["recipe.lr=1"])
    with pytest.raises(UserError, match="does not exist"):
        v.verify(tmp_path / "nothing")
    assert "no finished run" in no(v.verify(tmp_path))["files"]


def test_a_contributed_row_is_marked_in_the_tables(honest, tmp_path, entered):
    tables = script("make_tables")
    folder = tmp_path / "results" / "contributed"
    folder.mkdir(parents=True)
    file = v.pack(honest, folder / "mine.zip")

    def note():
        text = tables.generate(tmp_path / "results", [])["runs.md"]
        return [line for line in text.splitlines() if "by snn-verify" in line]

    assert "contributed and not verified" in note()[0]
    _, out, _ = entered(v.entry, file, "--json", "--quick")
    (folder / "mine.json").write_text(out)
    assert "contributed and verified" in note()[0] and "digits-small" in note()[0]
    (folder / "mine.json").write_text(out.replace(json.loads(out)["sha256"], "0" * 64))
    assert "not verified" in note()[0]
