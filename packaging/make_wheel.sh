#!/usr/bin/env bash
# Builds the wheel and prints its path.
#
#   bash packaging/make_wheel.sh PYTHON DIRECTORY
#
# PYTHON has pip; where it has setuptools too, nothing is downloaded. Built from a copy: setuptools would leave
# build/ in the checkout, and put what lies there from an earlier build into the next wheel.
set -euo pipefail
python=$(realpath -s "$(command -v "$1")")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/source" "$work/wheel"
cp -r vllm_dynin pyproject.toml setup.py README.md LICENSE NOTICE "$work/source"
find "$work/source" -name __pycache__ -type d -prune -exec rm -rf {} +
find "$work/source" -name '*.so' -delete
offline=()
if "$python" -c 'import setuptools, sys; sys.exit(int(setuptools.__version__.split(".")[0]) < 78)' 2> /dev/null; then
    offline=(--no-index --no-build-isolation)
fi
# For any machine, so without the CUDA C++ that an installation builds for itself where nvcc is.
DYNIN_BUILD_CUDA=0 "$python" -m pip --disable-pip-version-check wheel -q --no-deps "${offline[@]}" \
    --wheel-dir "$work/wheel" "$work/source" >&2
name=$(basename "$work"/wheel/*.whl)
mv "$work/wheel/$name" "$out/$name"
echo "$out/$name"
