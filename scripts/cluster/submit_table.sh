#!/usr/bin/env bash
# Submit all rows of a table without a run, once per seed; without other authors' methods (except for rivals).
#
#   scripts/cluster/submit_table.sh TABLE "SEEDS" [sbatch options] -- [overrides]
#   scripts/cluster/submit_table.sh 1 "0 1 2" --partition=gpu --account=lab -- data_dir=DIR cache_dir=DIR
set -euo pipefail
if (($# < 2)) || [[ $1 == -* || $2 == -* ]]; then
  echo "submit_table.sh: give a table (1, 2, 3, code, figures or rivals) and its seeds first, e.g. $0 1 \"0 1 2\" --partition=gpu -- data_dir=DIR cache_dir=DIR" >&2
  exit 2
fi
table=$1 seeds=$2
shift 2
options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
[[ ${1:-} == -- ]] && shift
scripts=$(dirname "$0")
own=(--own)
[[ $table == rivals ]] && own=()
mkdir -p runs
rows=$(mktemp "$PWD/runs/rows-XXXXXX.txt") # not deleted: the jobs read it when they start
# The commands include the overrides, quoted as for a shell.
python "$scripts/../list_rows.py" --table "$table" "${own[@]}" --format commands "$@" > "$rows" || {
  code=$?
  rm -f "$rows"
  exit $code
}
if [[ ! -s $rows ]]; then
  rm -f "$rows"
  echo "every row of table $table has a run"
  exit 0
fi
for seed in $seeds; do
  sbatch --array="1-$(wc -l < "$rows")" "${options[@]}" "$scripts/rows.sbatch" "$rows" "seed=$seed"
done
