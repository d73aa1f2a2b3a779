"""vLLM's own OpenAI server with the plug-in: `reftune serve` where vLLM is installed.

Must not know: HTTP, workers.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import torch

from ...data.style import PromptStyle
from ...errors import ReftuneError
from ...models import resolve_model
from ..adapters import read_adapter
from ..jobs import FineTuning, add_flags, fine_tuning_of
from ..modules import folder_of, parse_modules
from . import problem
from .adapters import Reader
from .options import KEY, check_content_name, options_of, refusal_of

__all__ = ["allow_plugin", "serve_vllm"]

GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
    "vllm.endpoint_plugins",
)
NAME = "reftune"


def serve_vllm(arguments: Sequence[str]) -> None:
    """Run the server until it is stopped; `arguments` are those of `vllm serve`, and those of `parser`.

    Raises:
        ReftuneError: an adapter on the command line that cannot be read as one, or no page can be shown.
        SystemExit: arguments that vLLM refuses.
    """
    allow_plugin()
    # vLLM reads its environment when it is imported
    from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: PLC0415
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args  # noqa: PLC0415
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup  # noqa: PLC0415
    from vllm.logger import configure_logging_from_args  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="reftune serve"))
    if (reason := problem()) is not None:
        raise ReftuneError(f"no adapters can be served: {reason}")
    add_arguments(parser)
    parser.set_defaults(host="127.0.0.1")
    args = parser.parse_args(list(arguments))
    args.subparser = "serve"
    args.reft_modules = [text for texts in args.reft_modules or [] for text in texts]
    name_packaged_model(args)
    set_options(args)
    if args.ui:
        allow_page(args)
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    check_adapters(args)
    with tempfile.TemporaryDirectory(prefix="reftune-serve-") as folder:
        # the same names in every API process
        args.reft_registry = str(Path(folder) / "adapters.json")
        ServeSubcommand.cmd(args)


def set_options(args: argparse.Namespace) -> None:
    """Put the plug-in's options where vLLM takes them to all of its processes.

    Raises:
        ReftuneError: they are not valid, or the plug-in is switched off and yet asked for something.
    """
    options = {"max_rank": args.reft_max_rank, "slots": args.reft_slots, "max_adapters": args.reft_max_adapters}
    given = {name: value for name, value in options.items() if value is not None}
    additional = args.additional_config or {}
    try:
        if not isinstance(additional, dict):
            raise ValueError(f"--additional-config {additional!r} is not a table; adapters need one")
        if options_of(additional) is None:
            if given or args.reft_modules or args.reft_allow_runtime_loading or args.fine_tuning:
                raise ValueError("--additional-config switches ReFT off, but other options ask for adapters")
            return
        args.additional_config = {**additional, KEY: {**additional.get(KEY, {}), **given}}
        options_of(args.additional_config)
    except ValueError as error:
        raise ReftuneError(str(error)) from error
    if args.reft_allow_runtime_loading and not args.reft_adapter_folder:
        raise ReftuneError("--reft-allow-runtime-loading needs --reft-adapter-folder: where adapters may come from")


def check_adapters(args: argparse.Namespace) -> None:
    """Read the adapters, and look at what they are to be served with, before an engine is started, which takes minutes.

    Raises:
        ReftuneError: there is something that would be refused then.
    """
    bases = args.served_model_name or [args.model_tag or args.model]
    modules = parse_modules(args.reft_modules, base_names=bases)
    loras = {getattr(lora, "name", None) for lora in args.lora_modules or []}
    for module in modules:
        check_content_name(module.name)
        if module.name in loras:
            raise ReftuneError(f"the adapter name {module.name!r} is that of a LoRA; give the ReFT adapter another")
    tuning = fine_tuning_of(args)
    if tuning is not None:
        check_share(tuning, args)
    if not modules and not args.reft_allow_runtime_loading and tuning is None:
        return
    folders = [folder_of(module) for module in modules]
    for folder in folders:
        # these without a model, whose configuration can be long in coming
        read_adapter(folder)
        PromptStyle.read(folder)
    reader = reader_for(args)
    for folder in folders:
        reader.read(str(folder))
    if len(modules) > reader.options.max_adapters:
        raise ReftuneError(f"{len(modules)} adapters are more than --reft-max-adapters {reader.options.max_adapters}")
    # those from the Hub by their folders, which every process finds
    named = zip(modules, folders, strict=True)
    args.reft_modules = [json.dumps({"name": module.name, "path": str(folder)}) for module, folder in named]


def check_share(tuning: FineTuning, args: argparse.Namespace) -> None:
    """Refuse a share of the GPU for training that vLLM does not leave.

    Raises:
        ReftuneError: it takes more than the rest.
    """
    if tuning.device == "cpu" or not torch.cuda.is_available():
        return
    taken = args.gpu_memory_utilization
    if tuning.memory is not None and taken + tuning.memory > 1:
        raise ReftuneError(
            f"--fine-tuning-memory {tuning.memory} and --gpu-memory-utilization {taken} are more than the GPU has "
            f"together; give vLLM {1 - tuning.memory:.2f} or less, or train elsewhere by --fine-tuning-device"
        )


def reader_for(args: argparse.Namespace) -> Reader:
    """What the server will read adapters with.

    Raises:
        ReftuneError: it cannot serve any.
    """
    from vllm import AsyncEngineArgs  # noqa: PLC0415 — only `reftune serve` gets here
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415

    # as vLLM itself will, of a copy
    chosen = copy.copy(args)
    if chosen.model_tag is not None:
        chosen.model = chosen.model_tag
    config = AsyncEngineArgs.from_cli_args(chosen).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    refusal = refusal_of(config)
    options = options_of(config.additional_config)
    if refusal is not None or options is None:
        raise ReftuneError(refusal or "ReFT is switched off")
    return Reader(config, options)


def name_packaged_model(args: argparse.Namespace) -> None:
    """`smollm2` is a folder to vLLM, and its name to those who ask."""
    name = args.model_tag or args.model
    folder = resolve_model(name)
    if folder != name:
        args.model_tag = args.model = folder
        args.served_model_name = args.served_model_name or [name]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that vLLM has not."""
    group = parser.add_argument_group("ReFT")
    group.add_argument(
        "--reft-modules", nargs="+", action="append", metavar="NAME=PATH", help="adapters, each under a model name"
    )
    group.add_argument("--reft-max-rank", type=int, help="highest rank of an adapter at one layer (default: 16)")
    group.add_argument("--reft-slots", type=int, help="on a GPU: interventions kept there (default: two per sequence)")
    group.add_argument("--reft-max-adapters", type=int, help="adapters kept in memory (default: 4096)")
    group.add_argument("--reft-allow-runtime-loading", action="store_true", help="routes that load and unload adapters")
    group.add_argument(
        "--reft-adapter-folder", action="append", metavar="DIR", help="where adapters may be loaded from at run time"
    )
    add_flags(group)
    group.add_argument("--ui", action="store_true", help="a page at /ui: chat, train, adapters")


def allow_page(args: argparse.Namespace) -> None:
    """Refuse what stands against the page.

    Raises:
        ReftuneError: no browser could reach it.
    """
    if args.headless or args.uds:
        raise ReftuneError("--ui needs a port that browsers reach; leave --headless and --uds out")


def allow_plugin() -> None:
    """vLLM loads routes of plug-ins only if they are named, and then no others: so all are."""
    given = os.environ.get("VLLM_PLUGINS")
    names = given.split(",") if given else [entry.name for group in GROUPS[:-1] for entry in entry_points(group=group)]
    os.environ["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*filter(None, names), NAME]))
