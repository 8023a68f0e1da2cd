# Sourced by node.sh in the project's folder: what the recipe, its processes and Ray find in their environment here.
# shellcheck shell=bash
set -euo pipefail

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
# An image, or an environment of the user's own, may have all that is pinned but not the project.
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# Somebody else's cluster, to which `ray symmetric-run` would turn before it looks for its own.
unset RAY_ADDRESS

# Left to themselves, the processes of all nodes compile their kernels at once into one home on a network file system.
# What lies there is run: not in a folder that somebody else has made.
kernels=/tmp/zs_nemo-kernels-$UID
if mkdir -m 700 -- "$kernels" 2>/dev/null || [[ -O $kernels && -d $kernels && ! -L $kernels ]]; then
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$kernels/triton} VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$kernels/vllm}
fi
