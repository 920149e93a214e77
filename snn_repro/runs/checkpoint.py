"""Checkpoints: written whole or not at all, checked before they are trusted, loaded without unpickling code."""

import argparse
import hashlib
import io
import os
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snn_repro.config import differing
from snn_repro.errors import UserError
from snn_repro.files import replace_atomically, unguessable
from snn_repro.neurons import initial_states, is_initial_state
from snn_repro.optim import load_optimizer, parameter_kind

LAST, PREVIOUS, BEST = "checkpoint_last.pt", "checkpoint_previous.pt", "checkpoint_best.pt"
DAMAGED = LAST + ".damaged"  # moved there, so that it never takes the place of the sound one before it
PARTS = ("model", "optimizer", "schedule", "scaler", "ema")  # what has a state of its own; ema may be None
FILES = (LAST, PREVIOUS, BEST, DAMAGED)
HINTS = {  # what to do where a parameter of a kind has another shape
    "imp": "IMP has one value a neuron, so it is tied to the input size; use the same frame size",
    "te": "TEBN has one scale a time step, so it is tied to T; use the same timesteps",
}


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another run."""


def save(folder: Path, content: dict, name: str = LAST) -> None:
    """Write `content` (tensors and plain values) to `folder/name` atomically; the one before stays as PREVIOUS."""
    target = folder / name
    buffer = io.BytesIO()
    torch.save(content, buffer)  # into memory first: torch hides the reason of a failed write (a full disk, say)
    with replace_atomically(target) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        if name == LAST and target.exists():
            spare = unguessable(folder / PREVIOUS)
            os.link(target, spare)
            os.replace(spare, folder / PREVIOUS)


def load(path: Path) -> dict:
    """Read one checkpoint; every record's CRC-32 is checked first, so a flipped bit is found as well as a lost tail.

    Of classes only argparse.Namespace may be in it: published checkpoints hold their command line so. Raises CheckpointError.
    """
    try:
        if zipfile.is_zipfile(path):  # torchvision has files in torch's older format, which has no checksums
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad:
                raise ValueError(f"the checksum of its record {bad} is wrong")
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("it holds no named weights")
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # zipfile, pickle and torch each have their own ways to say "not a checkpoint"
        raise CheckpointError(f"{path} is damaged or no checkpoint: {' '.join(str(error).split())[:200]}") from None


def resume(folder: Path, config: dict, say=print, data: dict | None = None) -> dict | None:
    """The newest sound checkpoint of this configuration in `folder`, or None where there is none.

    data: the fingerprint of the data that the run would go on with. A damaged last checkpoint is reported through `say`, renamed
    to DAMAGED, and the previous one is taken. Raises CheckpointError when none is sound, or when the checkpoint was written with
    another configuration or other data (the sentence names what differs).
    """
    problems: list[str] = []
    never = "start again with resume=never"
    for path in filter(Path.exists, (folder / LAST, folder / PREVIOUS)):
        try:
            content = load(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        try:
            weights_of(content, path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; move it away, or {never}") from None
        elsewhere = f"use another folder (hydra.run.dir=...), or {never}"
        if changed := differing(content["config"], config):
            raise CheckpointError(f"{path} belongs to another configuration ({'; '.join(changed)}); {elsewhere}")
        if changed := changes(content.get("data"), data):
            raise CheckpointError(
                f"{path} was trained on other data ({'; '.join(changed)}); give the data_dir and cache_dir that it began "
                f"with, {elsewhere}"
            )
        for problem in problems:
            os.replace(folder / LAST, folder / DAMAGED)
            say(f"warning: {problem}; going on from {path.name} (epoch {content['epoch']})")
        return content
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}; no earlier checkpoint is left, so {never}")
    return None


def changes(then: dict | None, now: dict | None) -> list[str]:
    """`["prepared frames: 3f2a... -> 99bc...", ...]`: in what two fingerprints of data differ, as far as both say."""
    then, now = then or {}, now or {}
    return [
        f"{k}: {then[k][:12]}... -> {now[k][:12]}..." for k in sorted(then.keys() & now.keys()) if then[k] != now[k]
    ]


def load_model(model: torch.nn.Module, state: dict, source: str) -> None:
    """Load a state_dict, or raise CheckpointError naming the first parameter that does not fit."""
    own, other = model.state_dict(), "it is a checkpoint of another model"
    for name in (*sorted(own.keys() - state.keys()), *sorted(state.keys() - own.keys())):
        lacks = f"no '{name}', which this model needs" if name in own else f"'{name}', which this model lacks"
        raise CheckpointError(f"{source} holds {lacks}: {other}")
    for name, value in own.items():
        if value.shape != state[name].shape:
            prefix, _, last = name.rpartition(".")
            hint = HINTS.get(parameter_kind(model.get_submodule(prefix), last), other)
            raise CheckpointError(
                f"{source}: '{name}' has shape {list(state[name].shape)} and this model needs {list(value.shape)}; {hint}"
            )
    model.load_state_dict(state)


def find_weights(name: str, data_dir: str | None) -> Path:
    """The file that `model.weights` names: a path, or a file name in data_dir, data_dir/weights or torch hub's folder; or
    the folder of a run, which stands for its last checkpoint, with the average of the weights where the run keeps one.

    A name like torchvision's, `resnet18-f37072fd.pth`, holds the beginning of the file's SHA-256, which is checked.
    Raises CheckpointError when there is no such file or its content is another.
    """
    if Path(name).is_dir():
        if not (Path(name) / LAST).is_file():
            raise CheckpointError(f"model.weights={name} is a folder and no run with weights: it holds no {LAST}")
        return Path(name)
    folders = [Path(data_dir), Path(data_dir, "weights")] if data_dir else []
    folders.append(Path(torch.hub.get_dir(), "checkpoints"))
    paths = [Path(name), *(folder / name for folder in folders)]
    published = re.search(r"(\w+-([0-9a-f]{8})\.pth)$", name)
    file = next((path for path in paths if path.is_file()), None)
    if file is None:
        where = f"; torchvision publishes it at https://download.pytorch.org/models/{published[1]}" if published else ""
        raise CheckpointError(
            f"model.weights={name} was not found, neither as a path nor in {', '.join(map(str, folders))}{where}; "
            "model.weights=null starts from scratch"
        )
    if published and not (digest := sha256(file)).startswith(published[2]):
        raise CheckpointError(f"{file} is not what its name says: its SHA-256 begins with {digest[:8]}; get it again")
    return file


def sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_evaluated(path: Path) -> tuple[dict, dict]:
    """(content, weights) of a run's checkpoint: those that the run tests, the average where it keeps one.

    Raises CheckpointError where it is damaged or not ours.
    """
    content = load(path)
    return content, weights_of(content, path)


def weights_of(content: dict, path: Path) -> dict[str, torch.Tensor]:
    """The weights in the content of a run's checkpoint that the run tests. Raises CheckpointError where it is not ours."""
    config = content.get("config")
    recipe = config.get("recipe") if isinstance(config, dict) else None
    if not isinstance(recipe, dict) or not isinstance(content.get("epoch"), int):
        raise CheckpointError(f"{path} was not written by snn_repro, or was changed")
    weights = _tensors(content.get("model"), path)
    if content.get("ema"):  # in the last checkpoint; the best one holds nothing but the average
        named = _tensors(content["ema"], path)
        return {k.removeprefix("module."): v for k, v in named.items() if k.startswith("module.")}
    return weights


def _tensors(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """The weights of a file, which are plain tensors with names. Raises CheckpointError where they are not."""
    value: Any
    for name, value in state.items() if isinstance(state, dict) else [("weights", None)]:
        plain = isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not plain or value.is_meta or value.is_quantized or value.is_complex():
            raise CheckpointError(
                f"{path} holds '{name}', which is no tensor of weights: it was changed, or is no checkpoint"
            )
    return state


def load_pretrained(model: torch.nn.Module, path: Path, say=print) -> None:
    """Start `model` from a file: a checkpoint of ours, or weights with our own names, torchvision's or others that the network
    knows (`own_names`), bare or under "model"; or from the folder of a run (see `find_weights`).

    IMP that the file lacks, or has for frames of another size, keeps its random start, and so does a classifier of another
    number of classes (of a run's folder: or of inputs); IMP that the model lacks is left out. `say` is told what fitted. Any
    other mismatch raises CheckpointError.
    """
    note, of_a_run = "", path.is_dir()
    if of_a_run:
        path = path / LAST
        content, given = load_evaluated(path)
        note = f"; of epoch {content['epoch']} of {content['config']['recipe'].get('epochs')}"
        note += ", averaged as the run tests them" if content.get("ema") else ""
    else:
        content = load(path)
        given = content["model"] if isinstance(content.get("model"), dict) else content
        if own_names := getattr(model, "own_names", None):
            settings = content.get("args")
            try:
                given, note = own_names(given, vars(settings) if isinstance(settings, argparse.Namespace) else {})
            except UserError as error:
                raise CheckpointError(f"{path}: {error}") from None
    own, given, imp = model.state_dict(), _tensors(given, path), initial_states(model)
    shaped = {name for name in own.keys() & given.keys() if own[name].shape == given[name].shape}
    new, unlike = imp.keys() - given.keys(), imp.keys() & given.keys() - shaped
    spare = {name for name in given.keys() - own.keys() if is_initial_state(name)}
    last = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)][-1:]
    head = {name for name in own.keys() & given.keys() if name.rpartition(".")[0] in last}
    if head <= shaped or not (of_a_run or all(given[n].shape[1:] == own[n].shape[1:] for n in head - shaped)):
        head = set()
    kept = new | unlike | head
    load_model(model, {k: v for k, v in given.items() if k not in spare} | {k: own[k] for k in kept}, str(path))
    notes = {
        f"{len(new)} IMP tensors are not in it and keep their random start": new,
        f"{len(unlike)} IMP tensors have another shape here and keep their random start": unlike,
        f"{len(spare)} IMP tensors of the file are left out, since this network learns none": spare,
        "the classifier has another number of classes or inputs and keeps its random start": head,
    }
    said = [f"weights from {path}: {len(own) - len(kept)} of {len(own)} tensors"]
    say("; ".join(said + [sentence for sentence, names in notes.items() if names]) + note)


def restore(parts: dict[str, Any], content: dict, source: Path, rank: int, size: int) -> tuple[int, int, dict]:
    """Give `parts`, named by PARTS, and the random generators the states of a checkpoint; returns epoch, step and sums.

    Raises CheckpointError where they do not fit.
    """
    try:
        load_model(parts["model"], content["model"], str(source))
        load_optimizer(parts["optimizer"], content["optimizer"])
        for name in PARTS[2:]:
            if parts[name]:
                parts[name].load_state_dict(content[name])
        rngs = [content["rng"], *content.get("rng_others", [])]
        if rank == 0 or size == len(rngs):  # with another number of processes the new ones draw their own
            set_rng_state(rngs[rank])
        return content["epoch"], int(content["step"]), dict(content["sums"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise CheckpointError(
            f"{source} does not fit this run, or was changed ({why}); start again with resume=never"
        ) from error


def rng_state() -> dict:
    """State of every random generator a run draws from, as tensors and plain values."""
    kind, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), pos, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = [torch.cuda.get_rng_state()]  # of this run's GPU, whatever others the machine has
    return state


def set_rng_state(state: dict) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), pos, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
