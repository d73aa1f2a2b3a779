# Two servers. Put adapters and models under /models:
#
#   docker build --target cpu -t reftune-cpu .      # on transformers, on a CPU
#   docker run -p 8000:8000 -v "$PWD:/models" reftune-cpu /models/base --reft-modules a=/models/my-adapter
#
#   docker build --target gpu -t reftune-gpu .      # on vLLM, on a GPU
#   docker run --gpus all -p 8000:8000 -v "$PWD:/models" reftune-gpu /models/base --reft-modules a=/models/my-adapter

FROM python:3.12-slim AS cpu
WORKDIR /opt/reftune
# Where torch has its builds for CPUs, if the machine needs to be told: --build-arg TORCH_INDEX=…
ARG TORCH_INDEX=
COPY pyproject.toml README.md LICENSE CHANGELOG.md constraints.txt ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch \
    && pip install --no-cache-dir -c constraints.txt '.[serve,demo]' \
    && useradd --create-home server
USER server
ENV HF_HOME=/home/server/cache
EXPOSE 8000
ENTRYPOINT ["reftune", "serve", "--backend", "transformers", "--host", "0.0.0.0"]

FROM vllm/vllm-openai:v0.32.0 AS gpu
WORKDIR /opt/reftune
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY src src
# vLLM's image has torch and transformers in the versions that vLLM wants: they stay.
RUN pip freeze | grep -iE '^(torch|transformers|vllm)==' > held.txt && pip install --no-cache-dir -c held.txt '.[cli]'
EXPOSE 8000
ENTRYPOINT ["reftune", "serve", "--backend", "vllm", "--host", "0.0.0.0"]
