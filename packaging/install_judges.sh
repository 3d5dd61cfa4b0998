#!/usr/bin/env bash
# Installs the judges of quality figures (requirements/eval.lock) into an environment of `make venv`.
#
#   bash packaging/install_judges.sh [DIRECTORY]      (default .venv)
#
# DIRECTORY/.judges is a copy of the lock file that was installed last, so that a second call returns at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
venv=${1:-.venv}

if cmp -s requirements/eval.lock "$venv/.judges" && "$venv/bin/python" -c 'import pocketsphinx' 2> /dev/null; then
    exit
fi
echo "Installing requirements/eval.lock into $venv (log: $venv/install.log)" >&2
"$venv/bin/python" -m pip --disable-pip-version-check --no-input install --no-deps --retries 3 --timeout 60 \
    -r requirements/eval.lock >> "$venv/install.log" 2>&1 || {
    echo "error: the judges did not install: $(grep -E '^(ERROR|error):' "$venv/install.log" | tail -1 | cut -c1-300)" >&2
    exit 1
}
cp requirements/eval.lock "$venv/.judges"
