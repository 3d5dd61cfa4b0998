#!/usr/bin/env bash
# The unit tests with the newest release of every dependency that pyproject.toml allows. For once a week:
# a range without an upper end is a promise about releases that do not exist yet.
#
#   [COMPAT=.compat] [NEWEST_PYTHON=python3.13] bash packaging/compat/newest.sh [PYTEST OPTIONS…]
#
# Makes COMPAT/newest/env anew when it is older than six days (FRESH=1: always), with the newest Python that
# the package allows, because that is where the newest releases are; runs tests/unit and tests/parity; and
# writes COMPAT/newest/report.md. A test that is skipped for want of a package is a failure here: what may
# be skipped is in expected_skips.py. About 6 GB, 10 minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. packaging/compat/environments.sh
root=$PWD
base=${COMPAT:-.compat}/newest
mkdir -p "$base"
base=$(cd "$base" && pwd)
python=$base/env/bin/python

make_environment() {
    local chosen log=$base/install.log
    chosen=${NEWEST_PYTHON:-$(find_python 3.13 3.12 3.11)}
    rm -rf "$base/env" "$base/.made"
    : > "$log"
    "$chosen" -m venv "$base/env" || die "$chosen cannot make a virtual environment"
    "$python" packaging/compat/newest_requirements.py > "$base/requirements.txt"
    echo "Installing the newest of everything into $base/env (log: $log)" >&2
    install "$log" "$python" --upgrade pip
    install "$log" "$python" --upgrade -r "$base/requirements.txt"
    install "$log" "$python" --no-deps --editable .
    touch "$base/.made"
}

if [ -n "${FRESH:-}" ] || [ -z "$(find "$base/.made" -mtime -6 2> /dev/null)" ]; then
    make_environment
fi

# No threads beside the tests' own: what fails here must fail for the versions.
export OMP_NUM_THREADS=1 PYTHONPATH=$root/packaging/compat:$root PATH=$base/env/bin:$PATH
status=0
"$python" -m pytest -p expected_skips --may-skip vllm -m "not gpu and not weights and not slow and not engine" \
    -q -p no:cacheprovider tests/unit tests/parity "$@" 2>&1 | tee "$base/log.txt" || status=$?
"$python" packaging/compat/report.py newest "$base/log.txt" "$base/requirements.txt" > "$base/report.md"
cat "$base/report.md"
exit "$status"
