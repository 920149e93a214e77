"""Prepare a data set: event recordings as cached frames, or checked ImageNet images.

python scripts/prepare_data.py dataset=cifar10_dvs data_dir=DIR cache_dir=DIR
python scripts/prepare_data.py experiment=ROW data_dir=DIR cache_dir=DIR workers=4

dataset       cifar10_dvs, dvs_gesture, ncaltech101, or event_folder for your own recordings; imagenet1k or
              imagenet100 check every image and store the listing, so that runs start immediately;
              experiment=ROW prepares the data of that row
data_dir      the published archives, or the folders that they unpack to; read only
cache_dir     folder for the frames; pass the same cache_dir to training
timesteps     frames per recording (default: the data set's)
integrate_by  number (default), time or braincog: frames of equal event count, equal time, or as BrainCog's code
frame_size    resize frames to this many pixels (default: the sensor's size)
workers       threads (default: one per CPU)
allow_bad     true: skip unreadable recordings and record them in the manifest
rebuild       true: rebuild a finished cache
verify        true: only verify all rows of the cache against their checksums

A stopped command resumes where it was when it is typed again.
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
    """Split the arguments into overrides of the configuration and this script's options."""
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
        raise UserError(f"verify=true only reads a finished cache; leave out {other}=true")
    return overrides, own


def say(line: str) -> None:
    """Print a line; continue silently once stdout is closed (`... | head -1`)."""
    if sys.stdout is None:  # stdout was closed at the start
        return
    try:
        print(line, flush=True)
    except (OSError, ValueError):
        sys.stdout = None
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python reports an error when it flushes at exit
        except OSError:
            pass


def one_line(message, *_, **__) -> None:
    """Print a warning in one line, without its location in the code."""
    print(f"warning: {message}", file=sys.stderr)


def list_images(cfg, own: dict) -> int:
    """Check all images of class folders and store their listing."""
    from snn_repro.data.sets import SETS

    if wrong := own.keys() - {"workers", "rebuild"}:
        raise UserError(f"{min(wrong)}=true is for recordings; leave it out for dataset={cfg.dataset.name}")
    dataset: Any = SETS[cfg.dataset.name]
    if not own.get("rebuild") and dataset.checked_before(cfg):
        say(f"{dataset.listing_file(cfg)}: checked before")
    else:
        images = dataset.prepare(cfg, own.get("workers") or 16, say)
        say(f"{dataset.listing_file(cfg)}: {images:,} images, all good")
    return 0


def main(arguments: list[str]) -> int:
    """Run the script; exit code 0, or 2 for wrong input."""
    for descriptor in (0, 1, 2):  # else the next opened file takes a closed descriptor, and output goes there
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if not arguments or {"-h", "--help"} & set(arguments):
        parser = Parser("prepare_data.py", __doc__)
        parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="options above, or keys of training")
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
            overrides.append("recipe=digits")  # the data set has no recipe, and frames do not depend on one
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
                    f"{cache.folder}: {len(bad)} of {len(cache.names)} rows do not match their checksums: {listed}; rebuild"
                    f" the cache with `{cache.rebuild}`"
                )
            say(f"{cache.folder}: all {len(cache.names)} rows match their checksums")
            return 0
        settings = event_set(cfg.dataset.name).cache_settings(cfg)
        report = prepare(settings, cfg.data_dir, cfg.cache_dir, say=say, **own)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return 130
    if report.samples < report.expected:
        say(
            f"warning: the complete data set has {report.expected} recordings, this cache {report.samples};"
            " results are not comparable with those on the complete set"
        )
    if report.read:
        say(f"{report.folder}: {report.samples} recordings, {report.read} of them read now ({report.speed})")
    else:
        say(f"{report.folder}: {report.samples} recordings, prepared before")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # in each reading thread
    sys.exit(main(sys.argv[1:]))
