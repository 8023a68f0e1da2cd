#!/usr/bin/env bash
# Injects every fault many times over into runs on a tiny model, and writes the counts into the docs.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/faults.sh [--times N] [--faults NAME ...] [--seed N] [--folder DIR]

Kills engines, training ranks and drivers, tears checkpoints and fills disks at moments that the seed draws, N times
each (20 unless told otherwise) and four into a run, and holds every run against one without faults. What became of each
run goes into docs/results/faults.jsonl, the counts into docs/cluster.md. Broken off and begun again, it goes on; runs
that failed stay in DIR (runs/faults). Filling a disk needs user namespaces: unshare -Urm.

Environment: as launch/quickstart.sh --help says.
TEXT
}

case ${1:-} in -h | --help)
    usage
    exit
    ;;
esac

. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment dev
cd -- "$root"
"$python" -m tests.functional.fault_campaign "$@"
