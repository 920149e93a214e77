#!/usr/bin/env bash
# Stop what up.sh started in DIR, by its pid files.
set -uo pipefail
dir=$(realpath -m "$1")
export SLURM_CONF=$dir/slurm.conf
scancel --state=PENDING --me 2> /dev/null
scancel --me 2> /dev/null
for _ in $(seq 20); do
  [[ -z $(squeue -h 2> /dev/null) ]] && break
  sleep 0.5
done
for name in slurmd slurmctld munged; do
  [[ -s $dir/$name.pid ]] && kill "$(cat "$dir/$name.pid")"
done
sleep 1
