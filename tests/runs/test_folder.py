"""The run directory decides: new, resume, already done, another configuration, in use, not writable."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_runs import fake_run

from snn_repro.config import load_config
from snn_repro.errors import UserError
from snn_repro.files import replace_atomically, write_json, write_text
from snn_repro.runs.folder import RESULT, RunFolder, environment, epoch_of, final_outputs, find_results


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"a": 1})
    with pytest.raises(RuntimeError), replace_atomically(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert json.loads(target.read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_links_and_devices_are_written_to_and_no_name_can_be_guessed(tmp_path):
    mine, link, seen = tmp_path / "mine.txt", tmp_path / "link.txt", []
    mine.write_text("before")
    link.symlink_to(mine)
    for name in ("link.txt.tmp", "mine.txt.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    write_text(link, "after")
    assert link.is_symlink() and mine.read_text() == "after" and not (tmp_path / "victim").exists()
    for _ in range(2):
        with replace_atomically(mine) as temporary:
            seen.append(temporary)
    (tmp_path / "plain").touch()
    assert len({*seen}) == 2 and mine.stat().st_mode == (tmp_path / "plain").stat().st_mode
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    write_text(tmp_path / "pipe", "said")
    write_text(Path(os.devnull), "gone")
    assert reader.communicate()[0] == "said" and Path(os.devnull).is_char_device() and (tmp_path / "pipe").is_fifo()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        with pytest.raises(UserError, match="it is a block device or a socket"):
            write_text(tmp_path / "socket", "no")


def test_a_finished_run_is_found_and_another_configuration_is_named(tmp_path):
    config = load_config()
    folder = RunFolder(tmp_path, config)
    assert folder.finished is None
    folder.begin(["seed=0"], "cpu")
    folder.finish(fake_run(tmp_path / "other", acc=0.5))
    folder.close()
    again = RunFolder(tmp_path, config)
    assert again.finished.acc_last == 0.5
    again.close()
    with pytest.raises(UserError, match=r"recipe.lr: 0.005 -> 0.3.*force=true"):
        RunFolder(tmp_path, load_config(["recipe.lr=0.3"]))
    redo = RunFolder(tmp_path, load_config(["recipe.lr=0.3", "force=true"]))
    assert redo.finished is None and not (tmp_path / RESULT).exists()
    redo.close()


def test_never_resume_starts_again_but_keeps_what_is_finished(tmp_path):
    first = RunFolder(tmp_path, load_config())
    first.begin([], "cpu")
    first.record([{"epoch": 1}])
    first.close()
    with pytest.raises(UserError, match=r"another configuration \(recipe.lr: .*force=true"):
        RunFolder(tmp_path, load_config(["resume=never", "recipe.lr=0.3"]))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    fresh = RunFolder(tmp_path, load_config(["resume=never"]))
    assert fresh.history(0) == []
    fresh.begin([], "cpu")
    fresh.finish(fake_run(tmp_path / "other", acc=1.0))
    fresh.close()
    kept = RunFolder(tmp_path, load_config(["resume=never"]))
    assert kept.finished.acc_last == 1.0
    kept.close()


HOLDER = """
import os, sys, time
from pathlib import Path
from snn_repro.files import hold
lock = hold(Path(sys.argv[1]))
if not os.fork():
    os.close(1)
    time.sleep(60)  # a loader process, which outlives the run
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_even_if_its_fork_lives_on(tmp_path):
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match="is in use by another run; wait for it"):
                RunFolder(tmp_path, load_config())
            holder.kill()
            holder.wait()
            RunFolder(tmp_path, load_config()).close()
        finally:
            os.killpg(holder.pid, signal.SIGKILL)  # the fork


def test_a_file_system_without_flock_warns_and_still_knows_who_holds_a_folder(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="flock not supported"):
        first = RunFolder(tmp_path, load_config())
    with pytest.raises(UserError, match="in use"):
        RunFolder(tmp_path, load_config())
    first.close()
    RunFolder(tmp_path, load_config()).close()


def test_the_command_says_one_sentence_for_a_folder_or_data_that_it_does_not_find(tmp_path, typed):
    (tmp_path / "f").write_text("")
    code, _, err = typed(f"hydra.run.dir={tmp_path / 'f' / 'g'}")  # a file stands where a folder is needed
    assert code == 2 and err.count("\n") == 1 and "cannot write" in err and "hydra.run.dir" in err
    quiet = "dataset=cifar100", "logger.mode=disabled", f"data_dir={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}"
    code, _, err = typed(*quiet)
    assert code == 2 and err.count("\n") == 1 and err.startswith("snn-train: cifar100 was not found")


def test_what_is_damaged_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="config.yaml cannot be read as the configuration of a run"):
        RunFolder(tmp_path, load_config())
    folder = RunFolder(tmp_path, load_config(["force=true"]))
    folder.record([dict(epoch=1, acc=0.5, acc_step=[0.5]), dict(epoch=2, acc=0.6, acc_step=[0.6])])
    assert [line["epoch"] for line in folder.history(1)] == [1] and epoch_of(tmp_path, 2)["acc"] == 0.6
    assert epoch_of(tmp_path, 3) == {}
    with pytest.raises(UserError, match="metrics.jsonl has 2 of the 3 epochs .*resume=never"):
        folder.history(3)
    for text in ('{"epoch": 1, "ac', "[1]", '{"epoch": 1, "acc": "x", "acc_step": []}'):
        (tmp_path / "metrics.jsonl").write_text(text)
        for read in (lambda: folder.history(1), lambda: epoch_of(tmp_path, 1)):
            with pytest.raises(UserError, match="metrics.jsonl is damaged: a line"):
                read()
    folder.close()


def test_outputs_of_several_processes_are_put_in_order():
    logits, labels = torch.arange(2 * 5 * 3.0).view(2, 5, 3), torch.arange(5)
    found = final_outputs([(logits[:, rank::2], labels[rank::2]) for rank in range(2)])
    assert found["label"].tolist() == labels.tolist() and (found["logits"] == logits.transpose(0, 1).numpy()).all()


def test_results_are_found_by_folder(tmp_path, capsys):
    for seed in range(2):
        fake_run(tmp_path, seed=seed, folder=f"seed{seed}")
    assert [r.seed for r in find_results(tmp_path)] == [0, 1]
    (tmp_path / "seed0" / RESULT).write_text("{")
    assert [r.seed for r in find_results(tmp_path)] == [1] and "seed0" in capsys.readouterr().err
    with pytest.raises(UserError, match="JSON"):
        find_results(tmp_path / "seed0")
    with pytest.raises(UserError, match="does not exist"):
        find_results(tmp_path / "no")


def test_the_environment_names_no_machine():
    text = json.dumps(environment("cpu"))
    assert os.uname().nodename not in text
    assert json.loads(text)["packages"]["torch"]
