#!/usr/bin/env bash
# One per node, started by recipe.sbatch: joins this node to the job's Ray cluster; on the first one the recipe runs.
set -euo pipefail

: "${ZS_NEMO_RAY_ADDRESS:?this script is started by launch/slurm/recipe.sbatch}" "${ZS_NEMO_OUTCOME:?}"
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

# SLURM signals this shell alone, or every process of the step: SignalChildrenProcesses of its cgroup.conf decides, and
# ProctrackType. Ignored here it is ignored by Ray's processes too; the recipe alone listens.
trap '' USR1
. launch/slurm/node_environment.sh

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
    # A node that is too busy to answer for a minute is not lost. SLURM gives one that is off up by itself.
    export RAY_health_check_timeout_ms=${RAY_health_check_timeout_ms:-30000}
    export RAY_health_check_failure_threshold=${RAY_health_check_failure_threshold:-10}
    # Where nothing is said, the other nodes take the first one's folder, of the same name, and it is left there.
    more=(--temp-dir "$RAY_TMPDIR/ray")
    read -ra typed <<<"${ZS_NEMO_RAY_OPTIONS:-}"
    # The dashboard takes commands from everybody on the machine. Ray refuses the option on all nodes but the first.
    if ((SLURM_NODEID == 0)); then more+=(--include-dashboard false); fi
    # Ray alone says 0 also where its first node did not start: the recipe's own exit code is written down.
    command=(ray symmetric-run --address "$ZS_NEMO_RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES"
        --num-cpus "${SLURM_CPUS_ON_NODE:?}" "${more[@]}" "${typed[@]}" --
        "${command[@]:0:2}" "cluster.ray_address=$ZS_NEMO_RAY_ADDRESS" "${command[@]:2}")
fi
ask() { trap '' USR1 TERM && exec launch/slurm/ask_to_stop.sh "$1" $$; }
if ((${SLURM_NODEID:-0})); then trap '' TERM; else trap 'again=1; ask USR1 &' USR1 && trap 'again=1; ask TERM &' TERM; fi
# In the background, as bash hears no signal while it waits for what runs in the foreground.
(trap '' USR1 && trap - INT TERM && exec "${command[@]}") &
started=$! again=1
# Left to itself, Ray on the other nodes takes a minute to see that its first node has gone.
if ((${SLURM_NODEID:-0})); then
    launch/slurm/follow.sh "$started"
    if [[ -f $ZS_NEMO_OUTCOME ]]; then exec env -u RAY_TMPDIR launch/slurm/sweep.sh keep; fi
fi
# A signal ends a wait, not what is waited for.
while [[ $again ]]; do
    again='' code=0
    wait "$started" || code=$?
done
exit "$code"
