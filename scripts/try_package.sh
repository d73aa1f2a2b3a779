#!/usr/bin/env bash
# Installs one built package in a fresh environment and tries it outside the source tree: its core, then its command.
# PYTHON and TORCH (with its pin) are taken from the Makefile.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
package=$(realpath "$1")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
cp "$root/constraints.txt" "$tmp/"
cd "$tmp"
unset PYTHONPATH
pip() { venv/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt "$@"; }
pip "${TORCH:-torch}"
pip "$package"
venv/bin/python -c 'import pathlib, sys, reftune; path = pathlib.Path(reftune.__file__).resolve()
assert path.is_relative_to(pathlib.Path(sys.prefix).resolve()), f"not from the package: {path}"'
pip "$package[cli]"
venv/bin/reftune --help
{ HF_HUB_OFFLINE=1 venv/bin/reftune show no-such-adapter 2>&1 || true; } | grep '^reftune: '
echo "$(basename "$package") imports and runs outside the source tree"
