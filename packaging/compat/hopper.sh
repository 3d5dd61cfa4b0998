#!/usr/bin/env bash
# The table of flags (flags.py) on pretended GPUs, with vLLM's CUDA wheel whole: its compiled parts are loaded,
# which wants a driver's library, so a file with its symbols and nothing behind them stands in for it.
#
#   [COMPAT=.compat] bash packaging/compat/hopper.sh [--write FILE]
#
# Needs the environment of rig.sh, and a C compiler.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$here/environments.sh"
export COMPAT=${COMPAT:-$root/.compat}
bash "$here/rig.sh" || exit 1
base=$(cd "$COMPAT/vllm33" && pwd)
vllm=$("$base/env/bin/python" -c 'import importlib.util as u; print(u.find_spec("vllm").submodule_search_locations[0])')
if [ ! -e "$base/driver/libcuda.so.1" ]; then
    command -v cc > /dev/null && command -v nm > /dev/null || die "no C compiler (cc, nm): the stand-in for the driver's library cannot be made"
    mkdir -p "$base/driver"
    nm -D --undefined-only "$vllm"/*.so "$vllm"/vllm_flash_attn/*.so \
        | awk '$NF ~ /^cu[A-Z]/ {print "int " $NF "(void){return 3;}"}' | sort -u > "$base/driver/libcuda.c"
    cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$base/driver/libcuda.so.1" "$base/driver/libcuda.c"
fi
"$base/env/bin/python" "$here/entry_points.py" "$root" "$base/plugin"
export PYTHONPATH=$here:$root:$base/plugin LD_LIBRARY_PATH=$base/driver OMP_NUM_THREADS=1
export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR PYTHONDONTWRITEBYTECODE=1
cd "$root"
status=0
: > "$base/flags.txt"
for gpu in H100 H200 B200 L40S; do
    "$base/env/bin/python" -W ignore "$here/flags.py" --gpu $gpu >> "$base/flags.txt" || status=1
done
cat "$base/flags.txt"
if [ "${1:-}" = --write ]; then
    "$base/env/bin/python" "$here/flags.py" write "$base/flags.txt" "$2"
fi
exit $status
