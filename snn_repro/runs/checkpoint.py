"""Checkpoints: written atomically, verified when read, loaded without executing code."""

import argparse
import io
import os
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snn_repro.config import Config, checked, differing
from snn_repro.errors import UserError, brief
from snn_repro.files import replace_atomically, sha256, unguessable
from snn_repro.losses import Loss
from snn_repro.neurons import initial_states, is_initial_state
from snn_repro.optim import load_optimizer, lr_factor, parameter_kind
from snn_repro.registry import LOSSES, NEURONS

LAST, PREVIOUS, BEST = "checkpoint_last.pt", "checkpoint_previous.pt", "checkpoint_best.pt"
DAMAGED = LAST + ".damaged"  # a damaged LAST is renamed, so that it never replaces a sound PREVIOUS
PARTS = ("model", "optimizer", "schedule", "scaler", "ema")  # what has a state_dict; ema may be None
FILES = (LAST, PREVIOUS, BEST, DAMAGED)
AGAIN = "start again with resume=never"
HINTS = {  # advice by kind of parameter, where its shape does not fit
    "imp": "IMP has one value per neuron and depends on the input size; use the same frame size",
    "te": "TEBN has one scale per time step and depends on T; use the same timesteps",
}


class CheckpointError(UserError):
    """A checkpoint is damaged, or does not fit the run."""


def save(folder: Path, content: dict, name: str = LAST) -> None:
    """Write `content` (tensors and plain values) atomically; the old LAST becomes PREVIOUS."""
    target, buffer = folder / name, io.BytesIO()
    torch.save(content, buffer)  # into memory first: torch hides why a write failed (a full disk, say)
    with replace_atomically(target) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        if name == LAST and target.exists():
            spare = unguessable(folder / PREVIOUS)
            os.link(target, spare)
            os.replace(spare, folder / PREVIOUS)


def load(path: Path) -> dict:
    """Read a checkpoint after verifying the CRC-32 of every record. Raises CheckpointError.

    The only class allowed in it is argparse.Namespace, in which published checkpoints store their command line.
    """
    try:
        if zipfile.is_zipfile(path):  # files in torch's older format (some of torchvision's) have no checksums
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            if bad:
                raise ValueError(f"the checksum of its record {bad} is wrong")
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("it has no named weights")
        return content
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except Exception as error:  # zipfile, pickle and torch raise errors of many classes
        raise CheckpointError(f"{path} is damaged or no checkpoint: {brief(error)}") from None


def resume(folder: Path, config: Config | dict, say=print, data: dict | None = None) -> dict | None:
    """The newest sound checkpoint of this configuration in `folder`; None without any checkpoint.

    `data` is the fingerprint of the data to continue with. If the last checkpoint is damaged, it is reported through
    `say` and renamed to DAMAGED, and the previous one is used. Raises CheckpointError if none is sound, or if the
    checkpoint has another configuration or other data (the message names the differences).
    """
    problems: list[str] = []
    for path in filter(Path.exists, (folder / LAST, folder / PREVIOUS)):
        try:
            content = load(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        weights_of(content, path, f"; move it away, or {AGAIN}")
        elsewhere = f"use another folder (hydra.run.dir=...), or {AGAIN}"
        if changed := unlike(content["config"], config):
            raise CheckpointError(f"{path} belongs to another configuration ({'; '.join(changed)}); {elsewhere}")
        if changed := changes(content.get("data"), data):
            back = f"set the data_dir and cache_dir that it started with, {elsewhere}"
            raise CheckpointError(f"{path} was trained on other data ({'; '.join(changed)}); {back}")
        for problem in problems:
            os.replace(folder / LAST, folder / DAMAGED)
            say(f"warning: {problem}; going on from {path.name} (epoch {content['epoch']})")
        return content
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}; no sound checkpoint is left, so {AGAIN}")
    return None


def unlike(then: dict, now: Config | dict) -> list[str]:
    """`differing` configurations; more epochs count, with the reason, only if they change the earlier ones."""
    changed, c = differing(then, now), now if isinstance(now, Config) else checked(now)
    before, r = then.get("recipe", {}).get("epochs") or 0, c.recipe.scaled()
    if not 0 < before < r.epochs:
        return changed
    rates = [(r.lr * lr_factor(replace(r, epochs=before), 1, e), r.lr * lr_factor(r, 1, e)) for e in range(before)]
    why = [
        *(f", with which recipe.schedule={r.schedule} gives epoch {e} the learning rate {new:g}, not {old:g}"
          for e, (old, new) in enumerate(rates, 1) if old != new),
        *(f", on which {registry.group}={name} depends" for registry, name in ((LOSSES, c.loss.name), (NEURONS, c.neuron.name))
          if getattr(registry[name], "begin_epoch", Loss.begin_epoch) is not Loss.begin_epoch),
    ]  # fmt: skip
    raised = {text for text in changed if text.startswith("recipe.epochs:")}
    return [text + why[0] * (text in raised) if why else text for text in changed if why or text not in raised]


def changes(then: dict | None, now: dict | None) -> list[str]:
    """`["prepared frames: 3f2a... -> 99bc...", ...]`: differences of two data fingerprints, in shared entries."""
    then, now = then or {}, now or {}
    return [
        f"{k}: {then[k][:12]}... -> {now[k][:12]}..." for k in sorted(then.keys() & now.keys()) if then[k] != now[k]
    ]


def load_model(model: torch.nn.Module, state: dict, source: str) -> None:
    """Load a state_dict. Raises CheckpointError with the first parameter that does not fit."""
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
    """The file or run folder that `model.weights` names.

    `name` is a path, or a file name in data_dir, data_dir/weights or torch hub's folder. A run folder means its last
    checkpoint, with averaged weights if the run keeps an average. The SHA-256 prefix in names like torchvision's
    `resnet18-f37072fd.pth` is verified. Raises CheckpointError for a missing file or a wrong hash.
    """
    if Path(name).is_dir():
        if not (Path(name) / LAST).is_file():
            raise CheckpointError(f"model.weights={name} is a folder without {LAST}, so no run with weights")
        return Path(name)
    folders = [Path(data_dir), Path(data_dir, "weights")] if data_dir else []
    folders.append(Path(torch.hub.get_dir(), "checkpoints"))
    paths = [Path(name), *(folder / name for folder in folders)]
    published = re.search(r"(\w+-([0-9a-f]{8})\.pth)$", name)
    if not (file := next(filter(Path.is_file, paths), None)):
        where = f"; torchvision publishes it at https://download.pytorch.org/models/{published[1]}" if published else ""
        raise CheckpointError(
            f"model.weights={name} was not found, neither as a path nor in {', '.join(map(str, folders))}{where}; "
            "model.weights=null trains from scratch"
        )
    if published and not (digest := sha256(file)).startswith(published[2]):
        raise CheckpointError(f"{file} does not match its name: its SHA-256 is {digest[:8]}...; download it again")
    return file


def weights_of(content: dict, path: Path, advice: str = "") -> dict[str, torch.Tensor]:
    """Weights that a run's checkpoint tests: averaged, if present. Raises CheckpointError for foreign files."""
    config, average = content.get("config"), content.get("ema")
    recipe = config.get("recipe") if isinstance(config, dict) else None
    if not (isinstance(recipe, dict) and isinstance(content.get("epoch"), int)):
        raise CheckpointError(f"{path} was not written by snn_repro, or was changed{advice}")
    weights = _tensors(average or content.get("model"), path)
    return {k.removeprefix("module."): v for k, v in weights.items() if not average or k.startswith("module.")}


def _tensors(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """The weights of a file. Raises CheckpointError unless they are named plain tensors."""
    for name, value in state.items() if isinstance(state, dict) else [("weights", state)]:
        if not (isinstance(value, torch.Tensor) and value.layout == torch.strided):
            raise CheckpointError(f"{path} has '{name}', which is no weight tensor: it was changed or is no checkpoint")
    return state


def load_pretrained(model: torch.nn.Module, path: Path, say=print) -> None:
    """Initialise `model` from a checkpoint, a file of pretrained weights or a run folder.

    Weights are bare or under "model", with our names, torchvision's or others that the network maps (`own_names`). IMP
    that is missing or of another frame size keeps its random initial values, as does a classifier with another number
    of classes (from a run folder: or inputs). IMP that the model lacks is dropped. `say` gets a summary. Raises
    CheckpointError for any other mismatch.
    """
    note, of_a_run = "", path.is_dir()
    path = path / LAST if of_a_run else path
    content = load(path)
    given = content["model"] if isinstance(content.get("model"), dict) else content
    if of_a_run:
        given = weights_of(content, path)
        note = f"; of epoch {content['epoch']} of {content['config']['recipe'].get('epochs')}"
        note += ", averaged as the run tests them" * bool(content.get("ema"))
    elif own_names := getattr(model, "own_names", None):
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
    random_start = new | unlike | head
    load_model(model, {k: v for k, v in given.items() if k not in spare} | {k: own[k] for k in random_start}, str(path))
    notes = {
        f"{len(new)} IMP tensors are not in it and keep their random initial values": new,
        f"{len(unlike)} IMP tensors have another shape here and keep their random initial values": unlike,
        f"{len(spare)} IMP tensors of the file are dropped, because this network has no IMP": spare,
        "the classifier has another number of classes or inputs and keeps its random initial values": head,
    }
    summary = [f"weights from {path}: {len(own) - len(random_start)} of {len(own)} tensors"]
    say("; ".join(summary + [text for text, names in notes.items() if names]) + note)


def restore(parts: dict[str, Any], content: dict, source: Path, rank: int, size: int) -> tuple[int, int, dict]:
    """Restore `parts` and the random generators from a checkpoint; returns (epoch, step, sums).

    `parts` are named as in PARTS. Raises CheckpointError if a state does not fit.
    """
    try:
        load_model(parts["model"], content["model"], str(source))
        load_optimizer(parts["optimizer"], content["optimizer"])
        for name in PARTS[2:]:
            if parts[name]:
                parts[name].load_state_dict(content[name])
        rngs = [content["rng"], *content.get("rng_others", [])]
        if rank == 0 or size == len(rngs):  # if the number of processes changed, new ones keep their own
            set_rng_state(rngs[rank])
        return content["epoch"], int(content["step"]), dict(content["sums"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{source} does not fit this run, or was changed ({brief(error, named=True)}); {AGAIN}"
        ) from error


def rng_state() -> dict:
    """State of all random generators of a run, as tensors and plain values."""
    kind, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), pos, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = [torch.cuda.get_rng_state()]  # only of this run's GPU
    return state


def set_rng_state(state: dict) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), pos, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
