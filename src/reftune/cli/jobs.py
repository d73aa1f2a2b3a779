"""`reftune jobs`: fine-tuning on a server, `reftune serve --fine-tuning` or another with OpenAI's API."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from ..errors import MissingExtraError, ReftuneError
from .output import JsonFlag, consoles, emit, progress_bars, say

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Fine-tune on a server: upload examples, watch the job, talk to the adapter. `reftune serve --fine-tuning`.",
)
SERVER = "http://127.0.0.1:8000"
KEYS = ("REFTUNE_API_KEY", "OPENAI_API_KEY")
ENDED = ("succeeded", "failed", "cancelled")
PAUSE = 0.5

Server = Annotated[str, typer.Option(help="Address of the server.")]
Key = Annotated[str | None, typer.Option(help=f"Its key (default: the variable {' or '.join(KEYS)}).")]
Id = Annotated[str, typer.Argument(help="The job's id.", metavar="JOB")]


@app.command()
def create(
    data: Annotated[Path, typer.Argument(help="Examples: .jsonl, .json or .csv.")],
    server: Server = SERVER,
    api_key: Key = None,
    model: Annotated[str | None, typer.Option(help="Base model, by default the one that is served.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Examples to tell the loss on.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the adapter's name.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate multiplier.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank r of the edit.")] = None,
    layers: Annotated[str | None, typer.Option(help="all, '3;9;18;24', -1, 0.5 …")] = None,
    positions: Annotated[str | None, typer.Option(help="f7+l7, l1, prompt, all …")] = None,
    intervention: Annotated[str | None, typer.Option(help="loreft, direft, noreft …")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    dpo: Annotated[bool, typer.Option("--dpo", help="The rows are preferences.")] = False,
    wait: Annotated[bool, typer.Option("--watch/--no-watch", help="Stay until its end.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Upload examples and train on them. Without --no-watch it stays until the end."""
    hyperparameters = {"n_epochs": epochs, "batch_size": batch_size, "learning_rate_multiplier": rate}
    reft = {"r": rank, "layers": layers, "positions": positions, "intervention": intervention}
    kind = "dpo" if dpo else "supervised"
    with client_of(server, api_key) as client:
        given = {
            "model": model or client.models.list().data[0].id,
            "training_file": _upload(client, data),
            "validation_file": None if validation is None else _upload(client, validation),
            "method": {"type": kind, kind: {"hyperparameters": _given(hyperparameters)}},
            "suffix": suffix,
            "seed": seed,
            "extra_body": {"reft": chosen} if (chosen := _given(reft)) else None,
        }
        job = client.fine_tuning.jobs.create(**_given(given))
        if wait:
            job = follow(client, job.id, as_json)
    _show(job, as_json)


@app.command("list")
def list_jobs(
    server: Server = SERVER,
    api_key: Key = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="The newest so many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """The jobs of a server, the newest first."""
    with client_of(server, api_key) as client:
        jobs = client.fine_tuning.jobs.list(limit=limit).data
    if as_json:
        emit({"jobs": [job.model_dump() for job in jobs]})
        return
    results, _ = consoles(as_json)
    # whole: it is what `watch` and `cancel` are told
    table = Table(Column("job", no_wrap=True), "status", "step", "loss", "adapter, or what went wrong")
    for job in jobs:
        progress = getattr(job, "progress", None) or {}
        step, loss = progress.get("step"), progress.get("train_loss")
        steps = f"{step} of {progress.get('total_steps')}" if step else ""
        shown = job.fine_tuned_model or (job.error.message if job.error else "")
        losses = "" if loss is None else f"{loss:.4f}"
        table.add_row(*map(Text, (job.id, job.status, steps, losses, shown)))
    results.print(table)


@app.command()
def watch(id: Id, server: Server = SERVER, api_key: Key = None, as_json: JsonFlag = False) -> None:
    """Follow a job to its end."""
    with client_of(server, api_key) as client:
        job = follow(client, id, as_json)
    _show(job, as_json)


@app.command()
def cancel(id: Id, server: Server = SERVER, api_key: Key = None, as_json: JsonFlag = False) -> None:
    """End a job that has not ended."""
    with client_of(server, api_key) as client:
        job = client.fine_tuning.jobs.cancel(id)
    _show(job, as_json)


@contextmanager
def client_of(server: str, key: str | None) -> Iterator[Any]:
    """The official client; what the server refuses is one line.

    Raises:
        MissingExtraError: the client is not installed.
        ReftuneError: the server is not reached, or refuses.
    """
    if importlib.util.find_spec("openai") is None:
        raise MissingExtraError("openai", extra="judge")
    import openai

    given = key or next((os.environ[name] for name in KEYS if os.environ.get(name)), "none")
    root = server.rstrip("/").removesuffix("/v1")
    client = openai.OpenAI(base_url=f"{root}/v1", api_key=given)
    try:
        yield client
    except openai.APIConnectionError as error:
        raise ReftuneError(
            f"no server is reached at {root}: {error}; start one, or name another by --server"
        ) from error
    except openai.NotFoundError as error:
        hint = "" if "there is no" in _message(error) else "; does it train? `reftune serve MODEL --fine-tuning FOLDER`"
        raise ReftuneError(f"{root}: {_message(error)}{hint}") from error
    except openai.APIStatusError as error:
        raise ReftuneError(f"{root}: {_message(error)}") from error
    finally:
        client.close()


def follow(client: Any, id: str, quiet: bool) -> Any:
    """Show a job's steps until its end; the job."""
    _, console = consoles(as_json=quiet)
    with progress_bars(console) as bars:
        task: Any = None
        status = ""
        while True:
            job = client.fine_tuning.jobs.retrieve(id)
            progress = getattr(job, "progress", None) or {}
            if job.status != status:
                status = job.status
                console.print(f"{id}: {status}", highlight=False)
            if progress.get("total_steps"):
                if task is None:
                    task = bars.add_task("training", total=progress["total_steps"], note="")
                loss = progress.get("train_loss")
                bars.update(task, completed=progress["step"], note="" if loss is None else f"loss {loss:.4f}")
            if status in ENDED:
                return job
            time.sleep(PAUSE)


def _upload(client: Any, path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReftuneError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return client.files.create(file=(path.name, content), purpose="fine-tune").id


def _show(job: Any, as_json: bool) -> None:
    """What has become of a job; one that failed is an error.

    Raises:
        ReftuneError: it failed.
    """
    if as_json:
        emit(job.model_dump())
    if job.status == "failed":
        raise ReftuneError(f"{job.id} failed: {job.error.message if job.error else 'the server does not say why'}")
    if as_json:
        return
    results, _ = consoles(as_json)
    if job.fine_tuned_model:
        loss = (getattr(job, "progress", None) or {}).get("train_loss")
        say(results, f"{job.fine_tuned_model}" + ("" if loss is None else f"  (last loss {loss:.4f})"))
        say(results, "It is served: give this name as the `model` of a request.")
    else:
        say(results, f"{job.id}: {job.status}")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _message(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)
