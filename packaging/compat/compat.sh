#!/usr/bin/env bash
# The tests of the engine on the newest supported vLLM, without a GPU: `make compat`.
#
#   [COMPAT=.compat] [PARTS="kernels engine omni http operating starts hopper"] bash packaging/compat/compat.sh
#
# On the environment of rig.sh, which is made first where it is missing. Each part is a process of its own
# with a log in COMPAT/vllm33/logs; the report for docs/compatibility.md is COMPAT/vllm33/report.md. A part
# that fails does not stop the next; the exit status is 1 if any failed. About 40 minutes on two idle cores.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export COMPAT=${COMPAT:-$root/.compat}
PARTS=${PARTS:-signatures kernels engine omni http operating starts hopper}
bash "$here/rig.sh" || exit 1
logs=$(cd "$COMPAT/vllm33" && pwd)/logs
mkdir -p "$logs"
status=0

in_rig() { bash "$here/rig.sh" "$@"; }
tests() {
    # What may be skipped here: tests of what the machine lacks. Everything else that is skipped is a failure.
    in_rig python -m pytest -p expected_skips --may-skip gpu --may-skip page --may-skip machine \
        --may-skip judges --may-skip ray -m "not gpu and not weights and not slow" \
        -q -p no:cacheprovider --durations=5 "$@"
}
part() {
    local name=$1 failed=0
    shift
    case " $PARTS " in *" $name "*) ;; *) return ;; esac
    echo "== $name: $(date -u +%H:%M:%S)"
    "$@" > "$logs/$name.log" 2>&1 || failed=1
    tail -3 "$logs/$name.log"
    [ $failed = 0 ] || { status=1; echo "FAILED: $name (see $logs/$name.log)"; }
}

part signatures in_rig python "$here/signatures.py" sources
part kernels tests tests/parity/test_runner_kernels.py tests/unit/test_media_connector.py
part engine tests tests/engine --ignore tests/engine/omni --ignore tests/engine/http --ignore tests/engine/operating
part omni tests tests/engine/omni
part http tests tests/engine/http
part operating tests tests/engine/operating
part starts in_rig env TRITON_ALL=1 python "$here/starts.py"
part hopper bash "$here/hopper.sh"
in_rig python "$here/report.py" compat "$logs" <(printf 'vllm\ntorch\ntransformers\ntriton\nnumpy\nav\nlibrosa\npillow\nfastapi\n') \
    > "$COMPAT/vllm33/report.md"
cat "$COMPAT/vllm33/report.md"
exit $status
