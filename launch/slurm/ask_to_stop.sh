#!/usr/bin/env bash
# Started by node.sh when SLURM has signalled the job, with the signal's name and node.sh's process number: hands the
# signal on to the recipe once that listens.
set -euo pipefail

# Not $PPID, which is another process's where node.sh ended before this shell began.
until [[ -f ${ZS_NEMO_OUTCOME:?} ]] || ! kill -0 "${2:?}" 2>/dev/null; do
    recipe=$(cat -- "$ZS_NEMO_OUTCOME.pid" 2>/dev/null || true)
    # The signals that it handles, a bit each.
    caught=0x0$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/${recipe:-none}/status" 2>/dev/null || true)
    if ((caught >> 9 & 1)); then
        # For SIGTERM too: the recipe may have that from SLURM already, and a second one does not let the step end.
        kill -USR1 "$recipe"
        exit
    elif [[ ${1:?} == TERM ]] && ((caught >> 14 & 1)); then
        # A recipe without steps.
        kill -TERM "$recipe"
        exit
    fi
    sleep 0.5
done
