#!/usr/bin/env bash
# Installs what is needed and runs the main job: see usage below.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/quickstart.sh [SETTING=VALUE ...]

Teaches a real 135M language model to search from a simulated engine, then examines it on a real one.
Makes .venv, installs the pinned requirements the first time, runs recipes/grpo.py, and says where the report is.
Run again it resumes an unfinished run; a finished one says so.

Settings are Hydra overrides of the recipe, for example
  seed=2 exp_manager.name=seed2      another seed in a run directory of its own
  search=bm25 exp_manager.name=bm25  train against the real engine instead of the simulated one
  --cfg job                          print the whole configuration and stop

Environment
  ZS_NEMO_PYTHON        the Python 3.11 to use, if it is not on PATH
  ZS_NEMO_ACCELERATOR   auto (default), cpu or cuda
  ZS_NEMO_CACHE         where converted models and built data lie (default ~/.cache/zs_nemo)
  ZS_NEMO_SKIP_CHECKS   set to 1 to go on with less free memory or disk than is asked for
  PIP_EXTRA_INDEX_URL   pip's own: a further package index, such as the one with PyTorch's CPU builds
TEXT
}

case ${1:-} in -h | --help)
    usage
    exit
    ;;
esac

. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

# shellcheck disable=SC2119
ensure_environment
cd -- "$root"
# The quickstart's two training ranks would ask for two GPUs; another experiment brings its own cluster.
if [[ $kind == cuda && " $*" != *" cluster="* && " $*" != *" experiment=zerosearch"* ]]; then set -- cluster=local_gpu "$@"; fi
# In place of this shell: Ctrl-C and every other signal reach the recipe itself.
exec "$python" recipes/grpo.py "$@"
