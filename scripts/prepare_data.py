"""Turn the raw recordings of an event data set into cached frames, or list and check the images of ImageNet, once.

python scripts/prepare_data.py dataset=cifar10_dvs data_dir=DIR cache_dir=DIR
python scripts/prepare_data.py experiment=ROW data_dir=DIR cache_dir=DIR workers=4

dataset       cifar10_dvs, dvs_gesture, ncaltech101, or event_folder for recordings of your own; experiment=ROW
              prepares what that row needs; or imagenet1k or imagenet100, of which every image is looked at and the
              listing kept, so that runs start at once
data_dir      the archives as published, or the folders that they unpack to; only ever read
cache_dir     where the frames go; pass the same cache_dir to training
timesteps     frames a recording (default: the data set's)
integrate_by  number (default), time or braincog: frames of equally many events, or of equal time
frame_size    resize frames to this many pixels (default: keep the sensor's size)
workers       threads (default: one a CPU)
allow_bad     true leaves out recordings that cannot be read, and says so in the manifest
rebuild       true makes a finished cache anew
verify        true makes nothing: it reads all rows of the cache and holds them against their checksums

A run that was stopped goes on where it was when the command is typed again.
"""

import os
import sys
import warnings
from typing import Any

import torch

from snn_repro.console import Parser
from snn_repro.errors import UserError

SHORT = {"integrate_by": "dataset.integrate_by", "frame_size": "dataset.frame_size"}


def own_options(arguments: list[str]) -> tuple[list[str], dict]:
    """Split the command line into overrides for the configuration and the options of this program."""
    overrides, own = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "workers":
            if not value.isdecimal():
                raise UserError(f"workers={value} must be a whole number, 0 or more")
            own[key] = int(value)
        elif key in ("allow_bad", "rebuild", "verify"):
            if value.lower() not in ("true", "false"):
                raise UserError(f"{key}={value} must be true or false")
            own[key] = value.lower() == "true"
        else:
            overrides.append(f"{SHORT.get(key, key)}{equals}{value}")
    if own.get("verify") and (own.get("rebuild") or own.get("allow_bad")):
        other = "rebuild" if own.get("rebuild") else "allow_bad"
        raise UserError(f"verify=true only reads a finished cache: leave out {other}=true")
    return overrides, own


def say(line: str) -> None:
    """Print a line; once nobody listens any more (`... | head -1`), go on with the work in silence."""
    if sys.stdout is None:  # started with a closed stdout
        return
    try:
        print(line, flush=True)
    except (OSError, ValueError):
        sys.stdout = None
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at the end
        except OSError:
            pass


def one_line(message, *_, **__) -> None:
    """Show a warning as one line, without the place in the code."""
    print(f"warning: {message}", file=sys.stderr)


def list_images(cfg, own: dict) -> int:
    """Look at all images of class folders and keep their listing."""
    from snn_repro.data.sets import SETS

    if wrong := own.keys() - {"workers", "rebuild"}:
        raise UserError(f"{min(wrong)}=true is for recordings: leave it out for dataset={cfg.dataset.name}")
    dataset: Any = SETS[cfg.dataset.name]
    if not own.get("rebuild") and dataset.checked_before(cfg):
        say(f"{dataset.listing_file(cfg)}: checked before")
    else:
        images = dataset.prepare(cfg, own.get("workers") or 16, say)
        say(f"{dataset.listing_file(cfg)}: {images:,} images, all good")
    return 0


def main(arguments: list[str]) -> int:
    """Run the program; the exit code is 0, or 2 after one sentence on stderr."""
    for descriptor in (0, 1, 2):  # a closed one would be given to the next file opened: what is printed would go there
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if not arguments or {"-h", "--help"} & set(arguments):
        parser = Parser("prepare_data.py", __doc__)
        parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="those above, or keys of training")
        say(parser.format_help().rstrip())
        return 0
    warnings.showwarning = one_line
    try:
        overrides, own = own_options(arguments)
        from snn_repro.config import choices, load_config

        named = dict(o.split("=", 1) for o in overrides if "=" in o)
        if (
            named.get("dataset") in set(choices("dataset")) - set(choices("recipe"))
            and not {"recipe", "experiment"} & named.keys()
        ):
            overrides.append("recipe=digits")  # it has none of its own, and frames depend on none
        cfg = load_config(overrides)
        from snn_repro.data.sets import SETS, ImageNet1k

        if isinstance(SETS[cfg.dataset.name], ImageNet1k):
            return list_images(cfg, own)
        from snn_repro.data.cache import event_set, prepare, verify_cache

        if own.pop("verify", False):
            cache, bad = verify_cache(event_set(cfg.dataset.name).cache_settings(cfg), cfg.cache_dir, say)
            if bad:
                listed = ", ".join(bad[:20]) + (f" and {len(bad) - 20} more" if len(bad) > 20 else "")
                raise UserError(
                    f"{cache.folder}: {len(bad)} of {len(cache.names)} rows are not what was stored: {listed}; rebuild it"
                    f" with `{cache.rebuild}`"
                )
            say(f"{cache.folder}: all {len(cache.names)} rows are as they were stored")
            return 0
        settings = event_set(cfg.dataset.name).cache_settings(cfg)
        report = prepare(settings, cfg.data_dir, cfg.cache_dir, say=say, **own)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if report.samples < report.expected:
        say(
            f"warning: the complete data set has {report.expected} recordings, this cache {report.samples};"
            " results do not compare with those on all of them"
        )
    if report.read:
        say(f"{report.folder}: {report.samples} recordings, {report.read} of them read now")
    else:
        say(f"{report.folder}: {report.samples} recordings, prepared before")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # of each of the threads that read
    sys.exit(main(sys.argv[1:]))
