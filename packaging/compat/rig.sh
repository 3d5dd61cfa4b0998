#!/usr/bin/env bash
# The Python of vLLM's newest supported CUDA wheel on a machine without a GPU: its environment, made once.
#
#   [COMPAT=.compat] [RIG_PYTHON=python3.12] bash packaging/compat/rig.sh            make it, or do nothing
#   bash packaging/compat/rig.sh COMMAND…                        and run COMMAND in it
#
# COMPAT/vllm33 gets `env` (everything the wheel requires, and the tests' tools, newest versions), and `site`
# (the wheel unpacked, its compiled parts left out: packaging/compat/rig/ stands in for them). About 9 GB and
# a few minutes, from a package index alone.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$here/environments.sh"
VERSION=0.33.0
base=${COMPAT:-$root/.compat}/vllm33
mkdir -p "$base"
base=$(cd "$base" && pwd -P)
log=$base/install.log
wheel=$base/whl/vllm-$VERSION

make_rig() {
    local chosen
    chosen=${RIG_PYTHON:-$(find_python 3.12)}
    echo "Installing vLLM $VERSION for its Python alone into $base (9 GB; log: $log)" >&2
    : > "$log"
    [ -x "$base/env/bin/python" ] || "$chosen" -m venv "$base/env" || die "$chosen cannot make a virtual environment"
    if ! compgen -G "$wheel-*.whl" > /dev/null; then
        "$base/env/bin/python" -m pip --disable-pip-version-check download -q --no-deps --only-binary :all: \
            -d "$base/whl" "vllm==$VERSION" >> "$log" 2>&1 || die "pip could not get vllm==$VERSION (see $log)"
    fi
    # shellcheck disable=SC2086 # the wheel's name is completed by the shell
    install "$log" "$base/env/bin/python" $wheel-*.whl -r <("$base/env/bin/python" "$here/newest_requirements.py")
    rm -rf "$base/site"
    mkdir "$base/site"
    (cd "$base/site" && "$base/env/bin/python" -m zipfile -e $wheel-*.whl . && find . -name '*.so' -delete)
    touch "$base/.made"
}

[ -e "$base/.made" ] || make_rig
# The tree may be another one than last time: its entry points are those of this one.
"$base/env/bin/python" "$here/entry_points.py" "$root" "$base/plugin"
[ $# -gt 0 ] || exit 0
export DYNIN_RIG=1 DYNIN_RIG_SITE=$base/site PATH=$base/env/bin:$PATH
export PYTHONPATH=$here/rig:$here:$root:$base/plugin
export PYTHONPYCACHEPREFIX=$base/pycache OMP_NUM_THREADS=1
cd "$root"
exec "$@"
