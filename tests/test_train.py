"""The main job: results, resuming bit for bit, signals, sweeps, and what happens when something breaks."""

import json
import math
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snn_repro import runtime, train
from snn_repro.config import load_config, to_dict
from snn_repro.errors import StopRequest, UserError
from snn_repro.losses import Loss, build_loss
from snn_repro.models import build_model
from snn_repro.runs.checkpoint import unlike
from snn_repro.train import Interrupted, TrainingError, run

TIMES = {"seconds", "samples_per_s", "peak_memory_mb"}


def numbers(result: dict) -> dict:
    """What must be equal between two runs of one configuration: all but the clock, and whether files were edited since."""
    return {k: v for k, v in result.items() if k not in TIMES | {"folder", "config", "code"}}


def lines(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


def test_the_average_of_the_weights_is_that_of_torch():
    """Of every kind of number: weights, running statistics and the counters of a norm, which are whole."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    ours = train.Averaged(model, 0.75)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    for _ in range(4):
        model(torch.randn(4, 1, 5, 5))
        with torch.no_grad():
            model[0].weight += 1
        for average in (ours, torchs):
            average.update_parameters(model)
    assert ours.state_dict().keys() == torchs.state_dict().keys() and int(ours.n_averaged) == 4
    assert all(map(torch.equal, ours.state_dict().values(), torchs.state_dict().values()))
    assert not torch.equal(ours.module[0].weight, model[0].weight)


def test_a_run_leaves_everything_that_is_promised(quick, tmp_path):
    config = quick("neuron=if_imp", "loss=lts")
    result = run(config, overrides=["neuron=if_imp"])
    folder = tmp_path / "run"
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "config.yaml", "overrides.yaml", "environment.json", "status.json", "metrics.jsonl", "result.json",
        "predictions.npz", "checkpoint_last.pt", "checkpoint_best.pt",
    }  # fmt: skip
    assert not list(folder.glob("*.tmp"))
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert result == json.loads((folder / "result.json").read_text())
    assert (result.timesteps, len(result.acc_step), len(result.acc_cum)) == (4, 4, 4)
    assert result.acc_last == result.acc_step[-1] and result.readout == "last"  # lts reads the last step
    assert (result.params_weights, result.params_imp) == (33490, 24 * 64 + 48 * 16 + 48 * 4)
    assert result.input_size == [1, 8, 8] and len(result.split_sha256) == 64
    assert result.neuron["surrogate"] == "atan" and result.precision == "float32"
    with np.load(folder / "predictions.npz", allow_pickle=False) as saved:
        assert saved["logits"].shape == (result.n_test, 4, 10)
        assert (saved["logits"][:, -1].argmax(1) == saved["label"]).mean() == pytest.approx(result.acc_last)
    epoch = lines(folder)[-1]
    assert epoch["epoch"] == 2 and set(epoch["firing_rates"]) == {"sn1", "sn2", "sn3"}
    assert all(0 <= r <= 1 for r in epoch["firing_rates"].values())
    best = torch.load(folder / "checkpoint_best.pt", weights_only=True)
    assert set(best["model"]) >= {"sn1.imp", "fc.weight"}


def test_a_finished_run_is_not_repeated(quick, tmp_path, monkeypatch):
    first = run(quick())
    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("it ran again"))
    assert run(quick()) == first
    with pytest.raises(UserError, match="recipe.lr: 0.005 -> 0.5"):
        run(quick("recipe.lr=0.5"))


def test_the_seed_decides_everything(quick, tmp_path):
    one, two = run(quick(), str(tmp_path / "a")), run(quick(), str(tmp_path / "b"))
    other = run(quick("seed=1"), str(tmp_path / "c"))
    assert numbers(one) == numbers(two)
    assert one.loss_last != other.loss_last


def test_a_finished_run_continues_for_more_epochs(quick, tmp_path, caplog):
    """Bit for bit as if it had been planned so; only where the first epochs would have been the same."""
    caplog.set_level("INFO", "snn_repro")
    constant = ["recipe.schedule=constant", "recipe.lr_per=16"]
    whole = run(quick(*constant, "recipe.epochs=2"), str(tmp_path / "whole"))
    run(quick(*constant, "recipe.epochs=1"), str(tmp_path / "more"))
    assert "; lr 0.01 = 0.005 x 32 / 16; " in caplog.text
    more = run(quick(*constant, "recipe.epochs=2"), str(tmp_path / "more"))
    assert more.changed_on_resume == ["recipe.epochs: 1 -> 2 from epoch 1, step 0"]
    assert numbers(more | {"changed_on_resume": []}) == numbers(whole)
    assert lines(tmp_path / "more") == lines(tmp_path / "whole")
    assert json.loads((tmp_path / "more/result_1_epochs.json").read_text())["epochs"] == 1
    faster = "with which recipe.schedule=cosine gives epoch 2 the learning rate 0.00375, not 0.0025"
    for words, changed in (
        (constant, []), ([], [f"recipe.epochs: 2 -> 3, {faster}"]),
        ([*constant, "loss=tks"], ["recipe.epochs: 2 -> 3, on which loss=tks depends"]),
    ):  # fmt: skip
        assert unlike(to_dict(quick(*words)), quick(*words, "recipe.epochs=3")) == changed
    (tmp_path / "more/checkpoint_last.pt").unlink()
    with pytest.raises(UserError, match="has 2 epochs and no checkpoint_last.pt to continue to recipe.epochs=3 from"):
        run(quick(*constant, "recipe.epochs=3"), str(tmp_path / "more"))
    assert (tmp_path / "more/result.json").exists()


@pytest.mark.parametrize("stop_at", [(2, 1), (1, 3)])
def test_a_stopped_run_continues_bit_for_bit(quick, tmp_path, monkeypatch, stop_at):
    """A signal in mid-epoch saves; the same command continues and ends with the same bits."""
    extra = ["recipe.epochs=3", "debug.max_steps=3", "recipe.ema_decay=0.9", "recipe.warmup_epochs=1"]
    whole = run(quick(*extra), str(tmp_path / "whole"))
    original = train.Training.train_step

    def stopping(self, *batch):
        if (self.epoch, self.step) == stop_at:
            self.stop.signum = signal.SIGTERM
        return original(self, *batch)

    if stop_at[1] < 3:
        monkeypatch.setattr(train.Training, "train_step", stopping)
    else:  # in the evaluation of an epoch

        def while_testing(*args, stop=lambda: None, **kwargs):
            if stop.__self__.epoch == stop_at[0]:
                stop.__self__.stop.signum = signal.SIGINT
            return evaluate(*args, stop=stop, **kwargs)

        evaluate = train.evaluate
        monkeypatch.setattr(train, "evaluate", while_testing)
    with pytest.raises(Interrupted):
        run(quick(*extra), str(tmp_path / "cut"))
    assert json.loads((tmp_path / "cut/status.json").read_text())["state"] == "interrupted"
    assert not (tmp_path / "cut/result.json").exists()
    monkeypatch.undo()
    again = run(quick(*extra), str(tmp_path / "cut"))
    assert numbers(again) == numbers(whole)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        a, b = (torch.load(tmp_path / d / name, weights_only=True)["model"] for d in ("cut", "whole"))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_nan_stops_with_epoch_step_and_checkpoint(quick, tmp_path, monkeypatch):
    original = train.Training.train_step

    def broken(self, *batch):
        loss, correct, n = original(self, *batch)
        return (loss * math.nan if (self.epoch, self.step) == (1, 2) else loss), correct, n

    monkeypatch.setattr(train.Training, "train_step", broken)
    with pytest.raises(
        TrainingError, match="loss is nan at epoch 2, step 3 of 3.*checkpoint_last.pt.*epoch 1"
    ) as error:
        run(quick())
    assert "\n" not in str(error.value)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed" and "epoch 2, step 3" in status["error"]
    assert not (tmp_path / "run/result.json").exists()


def test_accumulated_parts_make_the_same_step(quick, tmp_path):
    """In a network without batch statistics the parts add up to the whole batch's gradient."""
    torch.manual_seed(0)
    x, y = torch.rand(8, 1, 8, 8), torch.randint(10, (8,))
    gradients = []
    for parts in (1, 4):
        torch.manual_seed(1)
        model = build_model("small", num_classes=10, input_shape=(1, 8, 8), timesteps=2, neuron={"name": "if"})
        model.eval()
        config = quick(f"recipe.accumulate={parts}", "recipe.lr=1", "recipe.weight_decay=0")
        optimizer, cpu = torch.optim.SGD(model.parameters(), lr=1.0), torch.device("cpu")
        schedule, amp = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), runtime.Precision(config, cpu)
        parts = None, config, model, build_loss("sdt"), optimizer, schedule, amp, None, cpu, StopRequest(), 1
        state = train.Training(*parts)
        before = model.fc.weight.detach().clone()
        loss, correct, n = state.train_step(x, y)
        gradients.append((before - model.fc.weight.detach(), loss))
        assert n == 8
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss, rows", [("lts", 1), ("tet", 4)])
def test_training_reads_the_steps_that_the_loss_needs(quick, monkeypatch, loss, rows):
    seen, read = [], Loss.readout
    monkeypatch.setattr(Loss, "readout", lambda self, logits: seen.append(len(logits)) or read(self, logits))
    assert len(run(quick(f"loss={loss}", "recipe.epochs=1", "recipe.accumulate=2", "debug.max_steps=1")).acc_step) == 4
    assert seen[:2] == [rows, rows] and set(seen[2:]) == {4}  # two parts of a step, then the evaluations


def test_imp_keys_reach_the_optimiser(quick, tmp_path):
    frozen = run(quick("neuron.imp_trainable=false"), str(tmp_path / "frozen"))
    assert frozen.params_imp > 0
    moved = run(quick("neuron.imp_lr=5"), str(tmp_path / "moved"))
    state = [torch.load(tmp_path / d / "checkpoint_last.pt", weights_only=True) for d in ("frozen", "moved")]
    assert {g["kind"] for g in state[0]["optimizer"]["param_groups"]} == {"decay", "no_decay"}
    group = next(g for g in state[1]["optimizer"]["param_groups"] if g["kind"] == "imp")
    assert group["initial_lr"] == pytest.approx(0.025) and group["weight_decay"] == 0
    assert not torch.equal(state[0]["model"]["sn1.imp"], state[1]["model"]["sn1.imp"])
    assert moved.loss_last != frozen.loss_last


def test_device_and_precision_are_refused_where_they_do_not_exist(quick, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="device=cuda"):
        run(quick("device=cuda"))
    monkeypatch.setattr(runtime, "has_bf16_units", lambda: False)
    for amp in ("bf16", "fp16"):
        with pytest.raises(UserError, match=f"recipe.amp={amp}"):
            run(quick(f"recipe.amp={amp}", "force=true"))
    monkeypatch.setattr(runtime, "has_bf16_units", lambda: True)
    assert runtime.Precision(quick("recipe.amp=auto"), torch.device("cpu")).name == "float32"


def test_a_second_thread_may_load_a_configuration_and_not_train(quick, tmp_path, monkeypatch):
    words = [["seed=1"], ["neuron=lif", "loss=tet"], ["dataset=digits_dvs"], ["recipe.lr=0.1"]] * 3
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(load_config, words)] == [load_config(w) for w in words]
        original = train.Training.train_epoch

        def beside(self, *rest):
            other = pool.submit(run, quick(f"hydra.run.dir={tmp_path / 'other'}"))
            with pytest.raises(UserError, match="another thread of this process is training"):
                other.result()
            return original(self, *rest)

        monkeypatch.setattr(train.Training, "train_epoch", beside)
        run(quick())
    assert not (tmp_path / "other").exists()
    monkeypatch.undo()
    assert run(quick(f"hydra.run.dir={tmp_path / 'other'}")).epochs == 2  # the first gave it free
