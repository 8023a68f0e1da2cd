#!/usr/bin/env bash
# Submits the same job several times, each to begin when the one before it has ended: see usage below.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/slurm/chain.sh COUNT SBATCH-ARGUMENTS...

For clusters where a job may not requeue itself, or where a run should also outlive failures. Every job goes on from the
last checkpoint of the one before it; when the run is done, the jobs that are left say so and end at once. For example
  launch/slurm/chain.sh 5 --time=12:00:00 launch/slurm/train_policy.sbatch exp_manager.name=long
TEXT
}

case ${1:-} in -h | --help)
    usage
    exit
    ;;
esac
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || $# -lt 2 ]]; then
    usage >&2
    exit 2
fi

count=$1 previous=
shift
for ((number = 1; number <= count; number++)); do
    submitted=$(sbatch --parsable ${previous:+"--dependency=afterany:$previous"} "$@")
    # Where there are several clusters the answer is ID;CLUSTER.
    previous=${submitted%%;*}
    printf 'job %s of %s: %s\n' "$number" "$count" "$previous"
done
