#!/usr/bin/env bash
# Makes the numbers of docs/results.md on NQ and TriviaQA: a trained policy, what it began as, and baselines.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/question_sets.sh [SETTING=VALUE ...]

Asks the quickstart's policy, the same policy after its warm start, and the model that nobody has trained, 500 questions
each of NQ-open's and TriviaQA's test sets, with the simulator as engine; the policy also without being an agent. About
an hour on two cores. Keeps the reports under docs/results/sets_*/ and writes the table into docs/results.md. Broken
off and begun again, it goes on. Settings apply to all of them.

Environment: RUN (default runs/quickstart), the run directory of the policy; and as launch/quickstart.sh --help says.
TEXT
}

case ${1:-} in -h | --help)
    usage
    exit
    ;;
esac

. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
ensure_environment
cd -- "$root"
run_dir=${RUN:-runs/quickstart}

evaluate() {
    local name=$1
    shift
    "$python" recipes/evaluate.py 'data.test=[pyserini/nq:test,pyserini/triviaqa:test]' evaluate.limit=500 \
        search=simulated search.template=open "exp_manager.name=sets_$name" "$@"
    mkdir -p "docs/results/sets_$name"
    cp -- "runs/sets_$name/report.json" "docs/results/sets_$name/report.json"
}

evaluate trained "policy.model=$run_dir/policy" 'evaluate.methods=[agent,retrieve_then_read,chain_of_thought,direct]' "$@"
evaluate warm_started "policy.model=$run_dir/reference" "$@"
evaluate untrained "$@"
"$python" recipes/report.py --table --into docs/results.md question_sets docs/results/sets_*/
"$python" recipes/compare.py runs/sets_warm_started runs/sets_trained
say "docs/results.md is up to date."
