#!/usr/bin/env bash
# The tests of tuner, training, interventions and data beside other versions than those of constraints.txt.
#
#   scripts/versions.sh                 newest: transformers, PEFT and TRL of the day; then oldest: the floors that
#                                       pyproject.toml gives them
#   scripts/versions.sh NAME SPEC...    versions of your choice: scripts/versions.sh before transformers==5.20.2
#
# Each NAME has an environment of its own, .venv-NAME, which is brought up to date. PYTHON is the interpreter it is made
# with (python3); MARK and ARGS are those of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -eq 0 ]; then
    mapfile -t floors < <(grep -oE '"(transformers|peft|trl)>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/')
    failed=()
    bash "$0" newest transformers peft trl || failed+=(newest)
    bash "$0" oldest "${floors[@]}" || failed+=(oldest)
    [ ${#failed[@]} -eq 0 ] || { echo "failed with versions: ${failed[*]}"; exit 1; }
    exit
fi

name=$1 python=.venv-$1/bin/python
shift
[ -x "$python" ] || "${PYTHON:-python3}" -m venv ".venv-$name"
install=("$python" -m pip --disable-pip-version-check install -q)
# torch first and by its pin, see constraints.txt
torch=$(grep '^torch==' constraints.txt)
"${install[@]}" "$torch"
"${install[@]}" --upgrade "$@" "$torch" -e '.[cli,trl]' pytest hypothesis
"$python" -m pip list --format freeze | grep -E '^(torch|transformers|peft|trl|accelerate|datasets|huggingface_hub)=' \
    | paste -sd ' ' | sed "s/^/$name: /"
# the document of classes is of the pinned transformers; what a newer version would have otherwise is told and does not
# fail, unlike in `make test`
# shellcheck disable=SC2086 — ARGS are words
HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 PYTHONPATH='' \
    "$python" -m pytest -q -W default::FutureWarning -W default::DeprecationWarning \
    -m "not gpu and not vllm${MARK:+ and ($MARK)}" \
    --deselect tests/tuner/test_architectures.py::test_the_document_has_every_class_of_this_transformers_and_no_wrong_one \
    tests/tuner tests/training tests/interventions tests/data ${ARGS:-}
