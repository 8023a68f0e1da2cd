# Sourced at the end of a batch script, after job.sh and the step: tidies up, requeues where that helps, and exits.
# shellcheck shell=bash disable=SC2154
set -euo pipefail

code=
if [[ -f $ZS_NEMO_OUTCOME ]]; then code=$(<"$ZS_NEMO_OUTCOME"); fi
if [[ ! $code =~ ^[0-9]+$ ]]; then
    # Empty where the disk was full.
    echo "error: the recipe did not come to its end, or its exit code could not be written to $ZS_NEMO_OUTCOME" >&2
    code=1
fi
# Ray has ended on a node before the recipe did. That must end too, or has failed of it.
if [[ -f $ZS_NEMO_OUTCOME.lost ]] && ((code)); then
    echo "error: Ray ended while the recipe ran, on $(sort -u -- "$ZS_NEMO_OUTCOME.lost" | paste -sd, -)" >&2
    code=75
fi
rm -f -- "$ZS_NEMO_OUTCOME"{,.pid,.lost}

# Ray's logs stay where the run failed. A node that gives no answer is lost.
rest=keep
if ((code == 0 || code == 75)); then rest=delete; fi
if ! timeout 120 srun --ntasks-per-node=1 bash "$root/launch/slurm/sweep.sh" "$rest" && ((code)); then code=75; fi

if ((code == 75 && ${SLURM_RESTART_COUNT:-0} < ${ZS_NEMO_MAX_REQUEUES:-100})); then
    scontrol requeue "$SLURM_JOB_ID" || echo 'this cluster lets no job requeue itself: submit the same command again' >&2
fi
exit "$code"
