#!/usr/bin/env bash
# Builds the wheel and prints its path.
#
#   bash packaging/make_wheel.sh PYTHON DIRECTORY
#
# PYTHON has pip, setuptools and wheel; nothing is downloaded. Built from a copy: setuptools would leave build/
# in the checkout, and put what lies there from an earlier build into the next wheel.
set -euo pipefail
python=$(realpath -s "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/source" "$work/wheel"
cp -r vllm_dynin pyproject.toml setup.py README.md LICENSE NOTICE "$work/source"
find "$work/source" -name __pycache__ -type d -prune -exec rm -rf {} +
find "$work/source" -name '*.so' -delete
"$python" -m pip --disable-pip-version-check wheel -q --no-deps --no-index --no-build-isolation \
    --wheel-dir "$work/wheel" "$work/source" >&2
name=$(basename "$work"/wheel/*.whl)
mv "$work/wheel/$name" "$out/$name"
echo "$out/$name"
