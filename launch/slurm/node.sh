#!/usr/bin/env bash
# One per node, started by recipe.sbatch: joins this node to the job's Ray cluster; on the first one the recipe runs.
set -euo pipefail

: "${ZS_NEMO_RAY_ADDRESS:?this script is started by launch/slurm/recipe.sbatch}" "${ZS_NEMO_OUTCOME:?}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

# SLURM signals this shell alone, or every process of the step: SignalChildrenProcesses of its cgroup.conf decides, and
# ProctrackType. Ignored here it is ignored by Ray's processes too; the recipe alone listens.
trap '' USR1
if [[ -n ${ZS_NEMO_SETUP:-} ]]; then
    # Module files are seldom written for these options.
    set +eu
    # shellcheck disable=SC1090
    . "$ZS_NEMO_SETUP"
    set -eu
fi
if [[ -z ${ZS_NEMO_CONTAINER:-}${ZS_NEMO_SETUP:-} || -z $(command -v ray) ]]; then PATH=$PWD/.venv/bin:$PATH; fi
command -v ray >/dev/null || {
    echo 'error: ray is not on this node; install into .venv, or name an environment in ZS_NEMO_SETUP or ZS_NEMO_CONTAINER' >&2
    exit 1
}

# One machine needs no cluster: the recipe starts a Ray of its own, which lets others have theirs on the same machine.
command=(launch/slurm/recipe.sh "recipes/$1.py" "${@:2}")
if ((${SLURM_JOB_NUM_NODES:?} > 1)); then
    # An earlier life of a requeued job may have left its own.
    launch/slurm/sweep.sh delete
    # Not Ray's default place, where other users' Ray may have left theirs.
    export RAY_TMPDIR=/tmp/zsn-${SLURM_JOB_ID:?}-${SLURM_NODEID:?}
    mkdir -p -- "$RAY_TMPDIR"
    # Process titles would otherwise be written over the environment, by which sweep.sh knows them.
    export SPT_NOENV=1 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
    # Hundreds of processes that load Python from one file system, or a busy machine, need longer than Ray grants them.
    export RAY_agent_register_timeout_ms=300000 RAY_raylet_start_wait_time_s=300
    export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-600}
    read -ra more <<<"${ZS_NEMO_RAY_OPTIONS:-}"
    # The dashboard takes commands from everybody on the machine. Ray refuses the option on all nodes but the first.
    if ((SLURM_NODEID == 0)); then more+=(--include-dashboard false); fi
    # Ray alone says 0 also where its first node did not start: the recipe's own exit code is written down.
    command=(ray symmetric-run --address "$ZS_NEMO_RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES"
        --num-cpus "${SLURM_CPUS_ON_NODE:?}" "${more[@]}" --
        "${command[@]:0:2}" "cluster.ray_address=$ZS_NEMO_RAY_ADDRESS" "${command[@]:2}")
fi
ask() { trap '' USR1 TERM && exec launch/slurm/ask_to_stop.sh "$1" $$; }
if ((${SLURM_NODEID:-0})); then trap '' TERM; else trap 'again=1; ask USR1 &' USR1 && trap 'again=1; ask TERM &' TERM; fi
# In the background, as bash hears no signal while it waits for what runs in the foreground.
(trap '' USR1 && trap - INT TERM && exec "${command[@]}") &
started=$! again=1
# Left to itself, Ray on the other nodes takes a minute to see that its first node has gone.
if ((${SLURM_NODEID:-0})); then
    while [[ ! -f $ZS_NEMO_OUTCOME ]] && kill -0 "$started" 2>/dev/null; do sleep 1; done
    if [[ -f $ZS_NEMO_OUTCOME ]]; then exec env -u RAY_TMPDIR launch/slurm/sweep.sh keep; fi
fi
# A signal ends a wait, not what is waited for.
while [[ $again ]]; do
    again='' code=0
    wait "$started" || code=$?
done
exit "$code"
