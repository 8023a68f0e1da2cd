#!/usr/bin/env bash
# Started by node.sh where the recipe runs: leaves the recipe's process number, for signals, and at its end its exit code.
set -euo pipefail

# A SIGTERM to all processes is no reason to lose the exit code.
trap : TERM
code=0
(echo "$BASHPID" >"${ZS_NEMO_OUTCOME:?}.pid" && exec python "$@") || code=$?
echo "$code" >"$ZS_NEMO_OUTCOME"
exit "$code"
