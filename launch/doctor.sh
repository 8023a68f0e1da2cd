#!/usr/bin/env bash
# Looks whether a run can work here: see usage below.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/doctor.sh [--config-name RECIPE] [SETTING=VALUE ...]

Looks at this machine, or inside a SLURM allocation at all of its nodes: installed versions, GPUs and their links, the
memory that the planner asks for, ports, the run directories' file system, a collective between all ranks with its
bandwidth, clocks. One verdict a line, with the remedy; exit code 0 without a problem, 1 with one. About a minute.

  launch/doctor.sh                                                  the quickstart on this machine
  launch/doctor.sh --config-name ppo experiment=zerosearch_ppo_7b   that run; inside an allocation:
  sbatch --nodes=2 --gpus-per-node=8 --exclusive --mem=0 launch/doctor.sh experiment=zerosearch_grpo_7b

Environment: as launch/quickstart.sh --help and launch/slurm/recipe.sbatch say. Makes .venv where there is none.
TEXT
}

case ${1:-} in -h | --help)
    usage
    exit
    ;;
esac

# Submitted with sbatch a copy of the script runs, which lies elsewhere.
here=$(dirname -- "${BASH_SOURCE[0]}")
if [[ ! -f $here/environment.sh ]]; then here=${ZS_NEMO_ROOT:-${SLURM_SUBMIT_DIR:-.}}/launch; fi
. "$here/environment.sh"

if [[ -n ${ZS_NEMO_SETUP:-} ]]; then
    set +eu
    # shellcheck disable=SC1090
    . "$ZS_NEMO_SETUP"
    set -eu
    python=$(command -v python)
elif [[ ! -x $python ]]; then
    # shellcheck disable=SC2119
    ensure_environment
fi
cd -- "$root"
# As launch/slurm has it: an environment of the user's own may be without the project, and srun's without what is set.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} SLURM_EXPORT_ENV=ALL
exec "$python" recipes/doctor.py "$@"
