#!/usr/bin/env bash
# Installs what is needed and runs the checks and tests, stopping at the first group that fails: see usage below.
set -euo pipefail

groups=(ruff format mypy imports docs unit parity functional slurm)

usage() {
    cat <<TEXT
usage: launch/test.sh [GROUP ...]

Without a group, all of them run in this order: ${groups[*]}
Two more have to be asked for: long, tests of any kind that take minutes, and faults, all that injects faults.
docs builds the site of docs/ into site/. slurm is whole when it is named; as root on Debian it installs slurm-wlm and
munge where they are missing, and says so.
Environment: as launch/quickstart.sh --help says.
TEXT
}

for group in "$@"; do
    case $group in -h | --help)
        usage
        exit
        ;;
    esac
    if [[ " ${groups[*]} long faults " != *" $group "* ]]; then
        printf 'error: unknown group %s; the groups are: %s long faults\n' "$group" "${groups[*]}" >&2
        exit 2
    fi
done

. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

run_group() {
    case $1 in
        ruff) "$python" -m ruff check . ;;
        format) "$python" -m ruff format --check . ;;
        mypy) "$python" -m mypy ;;
        imports) "$python" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' ;;
        docs)
            ensure_environment docs
            "$python" -m mkdocs build --strict --quiet && say "The documentation: $root/site/index.html"
            ;;
        long | faults) "$python" -m pytest -m "$1" tests ;;
        slurm)
            ensure_slurm
            # Asked for by its name it is whole; in the whole, what takes minutes is left out.
            "$python" -m pytest ${asked:+-m ""} tests/slurm
            ;;
        # One process a core; a file's tests stay together, for what they share is made once for each process.
        unit | parity) "$python" -m pytest -n auto --dist loadfile "tests/$1" ;;
        # One after the other: a run takes all cores, and with anything beside it the whole takes longer.
        functional) "$python" -m pytest tests/functional ;;
    esac
}

# The tests make a cluster of their own from Debian's packages; where those are missing they are skipped, with the reason.
ensure_slurm() {
    if command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null; then return; fi
    if [[ -z ${CI:-}$asked || $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        say "SLURM is not installed; to have these tests: apt-get install slurm-wlm munge iproute2, as root."
        return
    fi
    say "Installing SLURM for the tests: apt-get install slurm-wlm munge iproute2"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
        slurm-wlm munge iproute2 >/dev/null; } || say "That failed: the tests are skipped."
}

asked=${1:-}
ensure_environment dev
cd -- "$root"
for group in "${@:-${groups[@]}}"; do
    printf '\n=== %s (after %s s)\n' "$group" "$SECONDS"
    run_group "$group" || fail "group $group failed, after $SECONDS s in all." "To run it alone: launch/test.sh $group"
done
