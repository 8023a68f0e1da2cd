#!/usr/bin/env bash
# Started by node.sh on every node but the first, with the process number of its Ray: returns when the recipe has come to
# its end, or that Ray before it. For end.sh it then writes down that this node was lost, though not the machine.
set -euo pipefail

has_ended() {
    # A network file system may remember for a minute that a file was not there, but not once its folder was read again.
    ls -- "${ZS_NEMO_OUTCOME%/*}" >/dev/null || true
    [[ -f ${ZS_NEMO_OUTCOME:?} ]]
}

# Ray's daemon, which runs here until the first node has been gone for a minute. `ray symmetric-run` outlives it, and
# says 0 even where it was killed.
has_daemon() {
    local environment
    for environment in $(grep -lsz "^RAY_TMPDIR=${RAY_TMPDIR:?}\$" /proc/[0-9]*/environ); do
        if [[ $(cat -- "${environment%environ}comm" 2>/dev/null) == raylet ]]; then return 0; fi
    done
    return 1
}

until has_ended || ! kill -0 "${1:?}" 2>/dev/null; do sleep 1; done
# Before the recipe has begun, a Ray that ends is one that did not start.
if [[ -f $ZS_NEMO_OUTCOME.pid ]] && ! has_daemon; then uname -n >>"$ZS_NEMO_OUTCOME.lost"; fi
