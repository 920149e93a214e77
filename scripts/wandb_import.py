"""Recreate W&B runs from the metrics.jsonl, result.json and config.yaml of run folders.

python scripts/wandb_import.py runs                          every run below, offline: upload with `wandb sync`
python scripts/wandb_import.py runs/digits-small-if-sdt --mode online --project P --entity E

For runs that were trained with logger.mode=disabled, whose W&B run was lost, or that belong to another project. Id,
name, group, tags and charts equal those of a live run, which is replaced; unfinished runs are imported as they are.
"""

import contextlib
import json
import sys
from pathlib import Path

from snn_repro import console
from snn_repro.errors import UserError, brief
from snn_repro.files import hold, write_error
from snn_repro.runs.loggers import wandb as ours
from snn_repro.runs.loggers.wandb import Log, checked_mode

SECONDS = 600  # timeout of a W&B call


def find_runs(roots: list[Path]) -> list[Path]:
    """Folders of runs with at least one epoch; raises UserError for a root without any."""
    found: dict[Path, None] = {}
    for root in roots:
        folders = [path.parent for path in sorted(root.rglob("metrics.jsonl"))]
        if not folders:
            raise UserError(
                f"{root} {'has no run with a finished epoch' if root.exists() else 'does not exist'}; give run folders"
            )
        found |= dict.fromkeys(folders)
    return list(found)


def read(folder: Path) -> tuple[dict, list[dict], dict | None, str | None]:
    """(configuration, history, result, hash) of a run; raises UserError for a damaged folder.

    result is None for an unfinished run.
    """
    import yaml

    def parsed(name: str, parse):
        try:
            return parse((folder / name).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{name}: {' '.join(str(error).split())[:150]}") from None

    config = parsed("config.yaml", yaml.safe_load)
    history = parsed("metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])
    result = parsed("result.json", json.loads) if (folder / "result.json").exists() else None
    status = parsed("status.json", json.loads) if (folder / "status.json").exists() else {}
    if not isinstance(config, dict) or not isinstance(config.get("logger"), dict):
        raise UserError("config.yaml is not a configuration of a run")
    if [isinstance(line, dict) and line.get("epoch") for line in history] != list(range(1, len(history) + 1)):
        raise UserError(f"metrics.jsonl must have one line for each of the epochs 1 to {len(history)}")
    if not isinstance(result, dict | None) or not isinstance(status, dict):
        raise UserError("result.json or status.json is not a JSON object")
    return config, history, result, (result or status).get("config_hash") or status.get("config_hash")


def import_run(folder: Path, say, **logger) -> None:
    """Create one W&B run; raises UserError if the folder is unusable or W&B fails."""
    with contextlib.ExitStack() as stack:
        if (folder / ".lock").exists():
            try:
                lock = hold(folder / ".lock")
            except OSError as error:
                raise write_error(folder, error) from None
            if lock is None:
                raise UserError("in use by a run, which logs itself")
            stack.callback(lock.release)
        config, history, result, run_hash = read(folder)
        config["logger"] |= logger
        try:
            log = Log(config, folder, say, run_id=run_hash and f"{run_hash}-{config['seed']}")
        except (KeyError, TypeError) as error:
            raise UserError(f"config.yaml lacks {error}") from None
        try:
            log.start(history)
            log.finish(result)
        except (Exception, SystemExit) as error:
            raise UserError(f"W&B did not accept it ({brief(error, named=True)})") from None


@console.one_sentence
def main(argv: list[str] | None = None) -> int:
    """Import runs; exit code 2 for wrong input or if no run was imported."""
    parser = console.Parser("wandb_import.py", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, or their parent folders")
    parser.add_argument("--project", help="W&B project (default: the run's logger.project)")
    parser.add_argument("--entity", help="W&B team or user (default: the run's logger.entity)")
    parser.add_argument("--mode", choices=("offline", "online"), default="offline", help="default: %(default)s")
    args = parser.parse_args(argv)
    ours.CALL_SECONDS = ours.FINISH_SECONDS = ours.STOP_SECONDS = SECONDS
    logger = {k: v for k in ("mode", "project", "entity") if (v := getattr(args, k))}
    done = 0
    folders = find_runs(args.runs)
    if checked_mode(args.mode) == "disabled":
        raise UserError("WANDB_MODE=disabled in the environment allows no W&B run; unset it")
    for folder in folders:
        try:
            import_run(folder, lambda line, folder=folder: print(f"{folder}: {line}", file=sys.stderr), **logger)
            print(f"{folder}: imported")
            done += 1
        except UserError as error:
            print(f"{folder}: skipped, {error}", file=sys.stderr)
    print(f"{done} of {len(folders)} runs imported")
    return 0 if done else 2


if __name__ == "__main__":
    sys.exit(console.script(main))
