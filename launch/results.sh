#!/usr/bin/env bash
# Makes the numbers of docs/results.md: the quickstart over several seeds, algorithms and search engines.
set -euo pipefail
shopt -s nullglob

usage() {
    cat <<'TEXT'
usage: launch/results.sh [SETTING=VALUE ...]

Runs the quickstart for each recipe, seed and engine, one after another (some two hours on two cores for the six
default ones), keeps every report.json under docs/results/, and writes the table of all that lie there into
docs/results.md. A run that is done is not repeated. Settings apply to all of them.

Environment
  RECIPES   default "grpo"; also reinforce_pp and ppo
  SEEDS     default "1 2 3"
  ENGINES   default "simulated bm25"
  TABLE     default "runs"; another one of the page's tables, for runs with other settings
  VARIANT   a word for the runs' names, so that runs with other settings can stand beside others of the same table
  BY        settings that have a column in the table and by which runs are averaged, such as "curriculum.name"
and as launch/quickstart.sh --help says.
TEXT
}

case ${1:-} in -h | --help)
    usage
    exit
    ;;
esac

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$here/environment.sh"
ensure_environment
cd -- "$root"
table=${TABLE:-runs}
prefix=${table}_
if [[ $table == runs ]]; then prefix=; fi

run() {
    local recipe=$1 engine=$2 seed=$3 name
    shift 3
    name=$prefix${recipe}_$engine${VARIANT:+_$VARIANT}_seed$seed
    "$python" "recipes/$recipe.py" "search=$engine" "seed=$seed" exp_manager.exp_dir=runs/results \
        "exp_manager.name=$name" "$@"
    mkdir -p "docs/results/$name"
    cp -- "runs/results/$name/report.json" "docs/results/$name/report.json"
}

for recipe in ${RECIPES:-grpo}; do
    for seed in ${SEEDS:-1 2 3}; do
        for engine in ${ENGINES:-simulated bm25}; do
            run "$recipe" "$engine" "$seed" "$@"
        done
    done
done

read -ra by <<<"${BY:-}"
"$python" recipes/report.py docs/results/"$prefix"{grpo,ppo,reinforce_pp}_*_seed*/ --table \
    --into docs/results.md "$table" ${by[0]:+--by "${by[@]}"}
say "docs/results.md is up to date."
