#!/usr/bin/env bash
# Makes the CPU environment from requirements/cpu.lock, or returns at once when it is up to date.
#
#   [PYTHON=python3.11] bash packaging/make_venv.sh [DIRECTORY]      (default .venv)
#
# "Up to date" is a hash over everything that went into the environment, kept in DIRECTORY/.stamp and
# written last: an interrupted installation is resumed by the next call, and a fresh checkout of the same
# files does not reinstall. Every refusal is one line that says what is missing and what to do about it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
venv=${1:-.venv}
log=$venv/install.log

die() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

inputs() {
    cat requirements/cpu.lock requirements/torch-cuda.lock pyproject.toml setup.py packaging/make_venv.sh
    find packaging/triton_cpu_interpreter packaging/vllm_cpu_alias -name '*.py' -o -name '*.toml' \
        | LC_ALL=C sort | xargs cat
    pwd # the editable install and the scripts in bin/ hold absolute paths
}

check_machine() {
    local system machine
    system=$(uname -s) machine=$(uname -m)
    [ "$system-$machine" = Linux-x86_64 ] || die \
        "this is $system on $machine, and the CPU build of vLLM that is pinned here exists for Linux on x86_64 only; for a CUDA machine see docs/install.md"
    grep -qw avx2 /proc/cpuinfo || die \
        "this processor has no AVX2, which the CPU build of vLLM needs; use another machine, or a CUDA one (docs/install.md)"
}

# Prints a working Python 3.11; a version manager's shim for a release it does not have is not one.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 found (tried: ${PYTHON:-python3.11 python3 python}); install it, or name it: make PYTHON=/path/to/python3.11"
}

pip() {
    # --retries/--timeout: with no index pip would otherwise try for minutes before it says so.
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" --retries 3 --timeout 60 >> "$log" 2>&1
}

install_tools() {
    local pins
    pins=$(grep -E '^(pip|setuptools|wheel)==' requirements/cpu.lock)
    # shellcheck disable=SC2086 # one argument per line is meant
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --retries 1 --timeout 20 \
        $pins >> "$log" 2>&1 || die \
        "pip could not get its first packages: is a package index reachable? Set PIP_INDEX_URL (or PIP_FIND_LINKS to a folder of wheels); pip's own words are in $log"
}

# The libraries that the build of torch which pip would take cannot be imported without: none for the
# CPU build. General-purpose indexes have the CUDA build only; it works on a CPU too, with those libraries.
torch_libraries() {
    local version
    # A dry run that fails says the same as the installation will: leave the message to that.
    version=$("$venv/bin/python" -m pip --disable-pip-version-check --no-input install -qq --dry-run --no-deps \
        --ignore-installed --report - "$(grep -E '^torch==' requirements/cpu.lock)" 2>> "$log" \
        | "$venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' \
            2>> "$log") || return 0
    case $version in
        *+cpu) ;;
        *)
            echo "note: the index offers torch $version but not its CPU build (+cpu); taking it with its CUDA libraries, 3 GB more on disk (docs/install.md says how to avoid that)" >&2
            echo "-r requirements/torch-cuda.lock"
            ;;
    esac
}

install_lock() {
    local libraries
    libraries=$(torch_libraries)
    # shellcheck disable=SC2086 # two words, or none
    pip install --no-deps -r requirements/cpu.lock $libraries || die \
        "pip could not install requirements/cpu.lock: $(grep -E '^(ERROR|error):' "$log" | tail -1 | cut -c1-300) (all of it: $log)"
}

install_own() {
    local work failed=
    # Built from a copy: setuptools leaves its build/ beside the sources, and a later build would pick it up.
    work=$(mktemp -d)
    cp -r packaging/triton_cpu_interpreter packaging/vllm_cpu_alias "$work"
    pip install --no-deps --no-build-isolation --force-reinstall \
        "$work/triton_cpu_interpreter" "$work/vllm_cpu_alias" || failed=1
    pip install --no-deps --no-build-isolation --editable . || failed=1
    rm -rf "$work"
    [ -z "$failed" ] || die "this package did not install; pip's own words are in $log"
}

check_result() {
    local output
    # vLLM itself only warns when its compiled part does not load, and then fails much later.
    output=$("$venv/bin/python" -c 'import ctypes, torch, triton.backends; assert "cpu" in triton.backends.backends; ctypes.CDLL("libnuma.so.1")' 2>&1) \
        || die "the environment was made but does not load: $(tail -1 <<< "$output"); a missing libnuma.so.1 comes with Debian's libnuma1 (numactl-libs elsewhere)"
}

main() {
    local wanted python
    wanted=$(inputs | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$venv/.stamp" 2> /dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2> /dev/null; then
        return
    fi
    check_machine
    python=$(find_python) || exit 1
    echo "Installing into $venv from requirements/cpu.lock (a minute or two; log: $log)" >&2
    rm -f "$venv/.stamp"
    if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2> /dev/null; then
        rm -rf "$venv"
        "$python" -m venv "$venv" > /dev/null 2>&1 || die \
            "$python cannot make a virtual environment; on Debian and Ubuntu install python3.11-venv"
    fi
    : > "$log"
    install_tools
    install_lock
    install_own
    check_result
    echo "$wanted" > "$venv/.stamp"
}

# Sourced by the tests, which call single steps.
[ "${BASH_SOURCE[0]}" != "$0" ] || main
