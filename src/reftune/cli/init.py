"""`reftune init`: something to begin with: an untrained adapter for another tool, or a configuration for a task."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import ReftuneError
from ..files import check_writable, write_text
from .convert import report
from .generate import StyleOption
from .output import JsonFlag, command, consoles, emit, load_package, quiet_libraries, say

__all__ = ["init"]

EXAMPLE = """Write something to begin with.

With a task, a commented configuration; without one, an untrained adapter, for
tools that can only go on with an adapter that is there. Of the model only its
configuration is read.

Examples:

    reftune init chat --output run.yaml

    reftune init --model smollm2 --output fresh --positions f7+l7 --rank 4

    reftune with llamafactory-cli train run.yaml
"""
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTER = """\
  r: 8                    # rank of the edit: 1 to 16 do for most tasks; more parameters with each
  layers: all             # or some: '3;9;18', -1 for the last, 0.5 for the middle
  positions: {positions:<13}# edited tokens: all of the prompt; or f7+l7 its first and last seven, l1 its last
"""
CHAT = """\
# {name}: an adapter of a chat model, by `reftune train {name}`
model: {model}
data: {data:<20}# rows of messages (role, content); .json, .csv and .parquet too, or a name on the Hub
output: my-adapter
train_on: all             # of conversations: every answer, or the last one only
max_length: 1024          # tokens of a row; longer prompts are cut from the left
reft:
{adapter}training:                 # fields of transformers.TrainingArguments
  learning_rate: 1e-3     # for a handful of rows more: 4e-3
  num_train_epochs: 3
  per_device_train_batch_size: 8
"""
CLASSIFICATION = """\
# {name}: an adapter that answers with a label, by `reftune train {name}`
model: {model}
data: {data:<20}# rows of text and label
output: my-adapter
split: 0.1                # held back, to score the adapter beside the base model
best: true                # keep the epoch with the lowest loss on them
reft:
{adapter}training:                 # fields of transformers.TrainingArguments
  learning_rate: 1e-3     # for a handful of rows more: 4e-3
  num_train_epochs: 5
  per_device_train_batch_size: 16
"""
DPO = """\
# {name}: an adapter that prefers some answers to others, by `reftune trl dpo --config {name}`
model_name_or_path: {model}
datasets:
  - path: json
    data_files: {data:<12}# rows of prompt, chosen and rejected
output_dir: my-adapter
beta: 0.1                 # how close to the base model its answers stay
learning_rate: 1.0e-3
num_train_epochs: 1
per_device_train_batch_size: 4
report_to: none
reft:
{adapter}"""
# the text, the positions, the command that trains
STARTS = {
    "chat": (CHAT, "prompt", "train"),
    "classification": (CLASSIFICATION, "prompt", "train"),
    "dpo": (DPO, "prompt", "trl dpo --config"),
}


def init(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of the configuration, or folder of the adapter.")
    ],
    task: Annotated[
        Literal["chat", "classification", "dpo"] | None, typer.Argument(help="Write a configuration for this task.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or Hub name of the base model, or smollm2.")] = None,
    data: Annotated[str, typer.Option(help="Of a configuration: the file of the rows.")] = "train.jsonl",
    rank: Annotated[int | None, typer.Option(help="Rank r of the edit.")] = None,
    layers: Annotated[str | None, typer.Option(help="all, '3;9;18;24', -1, 0.5 …")] = None,
    positions: Annotated[str | None, typer.Option(help="f7+l7, l1, prompt, all …")] = None,
    intervention: Annotated[str | None, typer.Option(help="loreft, direft, noreft …")] = None,
    reft: Annotated[str | None, typer.Option(help="Other fields of ReftConfig, as JSON.")] = None,
    prompt_style: StyleOption = None,
    seed: Annotated[int, typer.Option(help="Of the random start.")] = 42,
    as_json: JsonFlag = False,
) -> None:
    results, _ = consoles(as_json)
    flags = {"r": rank, "layers": layers, "positions": positions, "intervention": intervention}
    given = {name: value for name, value in flags.items() if value is not None}
    if task is not None:
        if given or reft or prompt_style:
            raise typer.BadParameter("a task's configuration is a file to change: the adapter's flags are for no task")
        next_one = start(task, output, model=model or SMALL, data=data)
        if as_json:
            emit({"output": str(output), "next": next_one})
        else:
            say(results, f"{output} is written; look through it, then:  {next_one}")
        return
    if model is None:
        raise typer.BadParameter("name a --model to make an adapter for, or a task to write a configuration for")
    load_package()
    from ..integrations.block import read_block
    from ..integrations.fresh import fresh_adapter

    quiet_libraries()
    fresh_adapter(model, output, {**read_block(reft), **given}, style=prompt_style, seed=seed)
    report(results, output, ["it is untrained, and answers as the base model does"], as_json=as_json)


init.__doc__ = EXAMPLE


def start(task: str, output: Path, *, model: str, data: str) -> str:
    """Write a configuration; returns the command that it is for.

    Raises:
        ReftuneError: there is such a file already, or none can be written.
    """
    if output.exists():
        raise ReftuneError(f"{str(output)!r} is there already; name another file, or delete it first")
    check_writable(output.parent)
    text, positions, verb = STARTS[task]
    adapter = ADAPTER.format(positions=positions)
    values: dict[str, Any] = {"name": output, "model": quoted(model), "data": quoted(data), "adapter": adapter}
    write_text(output, text.format(**values))
    return f"{command()} {verb} {output}"


def quoted(text: str) -> str:
    """As YAML reads it: what has signs in it is put in quotes."""
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)
