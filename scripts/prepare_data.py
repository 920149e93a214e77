"""Turn the raw recordings of an event data set into cached frames, once.

    python scripts/prepare_data.py dataset=cifar10_dvs data_dir=DIR cache_dir=DIR [key=value ...]

dataset       cifar10_dvs, dvs_gesture or ncaltech101; experiment=ROW prepares what that row needs
data_dir      the archives as published, or the folders that they unpack to; only ever read
cache_dir     where the frames go; pass the same cache_dir to training
timesteps     frames a recording (default: the data set's)
integrate_by  number (default) or time: frames of equally many events, or of equal time
frame_size    resize frames to this many pixels (default: keep the sensor's size)
workers       processes (default: one a CPU)
allow_bad     true leaves out recordings that cannot be read, and says so in the manifest
rebuild       true makes a finished cache anew

A run that was stopped goes on where it was when the command is typed again.
"""

import sys

from snn_repro.errors import UserError

SHORT = {"integrate_by": "dataset.integrate_by", "frame_size": "dataset.frame_size"}


def own_options(arguments: list[str]) -> tuple[list[str], dict]:
    """Split the command line into overrides for the configuration and the three options of this program."""
    overrides, own = [], {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "workers":
            if not value.isdecimal():
                raise UserError(f"workers={value} must be a whole number, 0 or more")
            own[key] = int(value)
        elif key in ("allow_bad", "rebuild"):
            if value.lower() not in ("true", "false"):
                raise UserError(f"{key}={value} must be true or false")
            own[key] = value.lower() == "true"
        else:
            overrides.append(f"{SHORT.get(key, key)}{equals}{value}")
    return overrides, own


def main(arguments: list[str]) -> int:
    """Run the program; the exit code is 0, or 2 after one sentence on stderr."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        overrides, own = own_options(arguments)
        from snn_repro.config import load_config

        cfg = load_config(overrides)
        from snn_repro.data.prepare import prepare

        report = prepare(
            cfg.dataset.name,
            cfg.data_dir,
            cfg.cache_dir,
            cfg.timesteps,
            by=cfg.dataset.integrate_by,
            frame_size=cfg.dataset.frame_size,
            **own,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if report.ignored:
        print(f"{report.ignored} files in the data folder do not belong to the data set and were ignored")
    if report.samples < report.expected:
        print(
            f"warning: the complete data set has {report.expected} recordings, this cache {report.samples};"
            " results do not compare with those on all of them"
        )
    if report.read:
        print(f"{report.folder}: {report.samples} recordings, {report.read} of them read now")
    else:
        print(f"{report.folder}: {report.samples} recordings, prepared before")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
