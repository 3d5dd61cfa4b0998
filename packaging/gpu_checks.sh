#!/usr/bin/env bash
# Everything that needs a GPU, in at most eight minutes, with a log: `make gpu`.
#
#   [OUT=FOLDER] [PYTHON=python3] [LIMIT=480] [PARTS="kernels engine sync start"] bash packaging/gpu_checks.sh
#
# Runs with the Python at hand: a checkout needs no installation, only pytest, and vLLM for all parts but
# the first (docs/gpu.md has both ways of getting it). A part that fails or runs out of time does not stop
# the next. OUT gets checks.log; the last lines are its summary. The exit status is 1 if a part failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
python=${PYTHON:-$(command -v .venv/bin/python || command -v python3)}
out=${OUT:-out/gpu}
limit=${LIMIT:-480}
parts=${PARTS:-kernels engine sync start}
mkdir -p "$out"
log=$out/checks.log
end=$((SECONDS + limit))
status=0
summary=()

# The entry points of this checkout, for a vLLM that it is not installed beside.
"$python" packaging/compat/entry_points.py . "$out/plugin" 2> /dev/null
export PYTHONPATH=$PWD:$PWD/$out/plugin:${PYTHONPATH:-}
export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0} VLLM_USE_DEEP_GEMM=${VLLM_USE_DEEP_GEMM:-0}
export VLLM_ENABLE_V1_MULTIPROCESSING=0

part() {
    local name=$1 seconds=$2 left=$((end - SECONDS)) code=0 began=$SECONDS
    shift 2
    case " $parts " in *" $name "*) ;; *) return ;; esac
    [ $left -ge 20 ] || { summary+=("$name: not run, the time is over"); status=1; return; }
    [ $seconds -le $left ] || seconds=$left
    echo "== $name (at most $seconds s)"
    timeout --kill-after=5 "$seconds" "$@" || code=$?
    summary+=("$name: exit status $code after $((SECONDS - began)) s")
    [ $code = 0 ] || status=1
}

tests() {
    # `addopts` names a plugin that such a machine may lack; everything the tests need is said here.
    local plugins=(-p no:cacheprovider -o addopts= --import-mode=importlib)
    part "$1" "$2" "$python" -m pytest "${plugins[@]}" -q -rA -s --no-header "${@:3}"
}

checks() {
    nvidia-smi 2> /dev/null | head -15 || echo "no nvidia-smi"
    "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, "CUDA", torch.version.cuda, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
    "$python" -c 'import vllm; print("vllm", vllm.__version__)' 2> /dev/null || { echo "no vLLM: the first part only"; parts=kernels; }
    tests kernels 150 -m gpu tests/devices tests/parity/kernels tests/parity/test_philox.py
    tests engine 210 -m gpu tests/engine/omni/test_devices.py -k "not waits"
    tests sync 90 -m gpu tests/engine/omni/test_devices.py -k waits
    part start 180 "$python" packaging/first_start.py ${START_ARGUMENTS:-}
    echo "== summary"
    printf '%s\n' "${summary[@]}"
}

checks > >(tee "$log") 2>&1
wait $! 2> /dev/null
exit $status
