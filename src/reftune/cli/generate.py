"""`reftune generate`: answers of an adapter to prompts, in batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..data.kinds import OTHER_NAMES
from ..data.records import read_records, read_rows
from ..data.style import STYLE_FILE, STYLES, PromptStyle
from ..errors import ReftuneError
from .output import JsonFlag, bar, consoles, emit, quiet_libraries, say

__all__ = ["StrengthOption", "StyleOption", "generate", "style_for", "turn"]

StrengthOption = Annotated[
    float | None,
    typer.Option(help="What the edits are multiplied by: 0 is the base, -1 the opposite.  [1]", show_default=False),
]

StyleOption = Annotated[
    Literal["messages", "instruction", "prompt"] | None,
    typer.Option(
        "--prompt-style",
        help="How prompts are put: by the chat template, the instruction template, or bare.  [as in training]",
        show_default=False,
    ),
]
PUT = {"messages": "by the chat template", "instruction": "by the instruction template", "prompt": "as they are"}

EXAMPLE = """Generate answers with an adapter.

Examples:

    reftune generate my-adapter --prompt "What is the capital of Japan?"

    reftune generate my-adapter --file questions.txt --batch-size 16 --json

A file is text with one prompt a line, or JSON, JSONL, CSV or Parquet
records. Prompts are put as the adapter was trained: by the chat template,
the instruction template, or bare. Its file reftune.json says how; where there
is none, --prompt-style does.
"""


def generate(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be given again.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="File of prompts.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 8,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    prompt_style: StyleOption = None,
    strength: StrengthOption = None,
    subspaces: Annotated[
        str | None, typer.Option(help="Parts of its subspaces to switch on, such as 0,1; or none.  [all]")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The same as --prompt-style prompt.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from ..generation import generate_texts
    from ..models import load_adapter

    results, progress = consoles(as_json)
    quiet_libraries()
    if raw and prompt_style not in (None, "prompt"):
        raise typer.BadParameter(f"--raw is --prompt-style prompt, but --prompt-style {prompt_style} is given too")
    prompts: list[str | dict[str, Any]] = [*(prompt or [])]
    if file is not None:
        prompts += read_prompts(file)
    if not prompts:
        raise typer.BadParameter("there is nothing to generate from; give --prompt TEXT or --file FILE")
    model, tokenizer = load_adapter(adapter, base=base)
    turn(model, strength, adapter=adapter)
    parts = {} if subspaces is None else {"subspaces": [read_parts(subspaces, model, adapter=adapter)]}
    records: list[Any] = prompts
    if any(isinstance(p, str) for p in prompts):
        style = style_for(adapter, tokenizer, chosen="prompt" if raw else prompt_style, console=progress)
        records = [style.record(p) if isinstance(p, str) else p for p in prompts]
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    with bar(progress, "generating", len(records)) as done:
        texts = generate_texts(
            model,
            tokenizer,
            records,
            batch_size=batch_size,
            progress=done,
            max_new_tokens=max_new_tokens,
            **sampling,
            **parts,
        )
    if as_json:
        pairs = [{"prompt": p, "output": text} for p, text in zip(prompts, texts, strict=True)]
        emit({"adapter": adapter, "outputs": pairs})
        return
    for p, text in zip(prompts, texts, strict=True):
        if len(prompts) > 1:
            say(results, _as_text(p), style="dim")
        say(results, text)


generate.__doc__ = EXAMPLE


def turn(model: Any, strength: float | None, *, adapter: str) -> None:
    """Set the strength of the adapter that was loaded.

    Raises:
        ReftuneError: it is of another method, whose adapters have none.
    """
    if strength is None:
        return
    if not hasattr(model, "set_strength"):
        raise ReftuneError(f"--strength {strength:g}: only ReFT adapters have a strength, and {adapter!r} is none")
    model.set_strength("default", strength)


def read_parts(text: str, model: Any, *, adapter: str) -> list[int]:
    """Parts of the adapter's subspaces by number, with commas, or "none".

    Raises:
        ReftuneError: it has no subspaces, or no such parts.
    """
    config = model.peft_config["default"]
    groups = config.resolved_groups() if hasattr(config, "resolved_groups") else []
    counts = [len(group.subspaces) for group in groups if group.subspaces is not None]
    if not counts:
        raise ReftuneError(f"--subspaces {text}: the adapter {adapter!r} has no subspaces, so no part can be chosen")
    valid = [str(number) for number in range(min(counts))]
    chosen = [] if text == "none" else [part.strip() for part in text.split(",")]
    if not set(chosen) <= set(valid):
        raise ReftuneError(f"--subspaces {text!r} is not valid; use {','.join(valid)} or some of these, or none")
    return [int(part) for part in chosen]


def style_for(adapter: str, tokenizer: Any, *, chosen: str | None, console: Console) -> PromptStyle:
    """As the adapter was trained, or as is chosen; where nothing says, a chat turn or the bare text, which is told."""
    from ..adapter_files import adapter_style

    known = adapter_style(adapter)
    if chosen is not None:
        return known if known is not None and known.style == chosen else PromptStyle(chosen)
    if known is not None:
        return known
    style = PromptStyle("messages" if tokenizer.chat_template else "prompt")
    others = " or ".join(name for name in STYLES if name != style.style)
    say(
        console,
        f"{adapter!r} has no {STYLE_FILE}, which says how its prompts were written in training: they are put "
        f"{PUT[style.style]}; if that is wrong, --prompt-style {others} puts them otherwise",
        style="yellow",
    )
    return style


def text_alone(record: Any) -> str | None:
    """The text of a row that has no more than that, such as of a column `text` without `label`."""
    filled = (
        {name: value for name, value in record.items() if value not in (None, "")}
        if isinstance(record, Mapping)
        else {}
    )
    names = [name for name, _ in OTHER_NAMES if name in filled]
    return filled[names[0]] if len(names) == len(filled) == 1 and isinstance(filled[names[0]], str) else None


def read_prompts(file: Path) -> list[str | dict[str, Any]]:
    """Prompts of a file: lines of a text, or records.

    Raises:
        ReftuneError: no such file, or nothing in it.
    """
    if file.suffix.lower() not in (".txt", ".text", ".md", ""):
        rows = list(read_rows(file).records) if file.is_file() else []
        bare: list[str | dict[str, Any]] = [text for row in rows if (text := text_alone(row)) is not None]
        if bare and len(bare) == len(rows):
            return bare
        # not as a table, which would fill in what other rows have
        return list(read_records(str(file), need_response=False).records)
    try:
        # utf-8-sig: without the mark that some editors put first; split at line ends only, not at U+2028
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ReftuneError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ReftuneError(f"{str(file)!r} is not UTF-8 text") from error
    prompts: list[str | dict[str, Any]] = [line for line in lines if line.strip()]
    if not prompts:
        raise ReftuneError(f"{str(file)!r} has no line with a prompt")
    return prompts


def _as_text(prompt: str | dict[str, Any]) -> str:
    """A prompt in one line, as a person would name it."""
    if isinstance(prompt, str):
        return prompt
    turns = prompt.get("messages") or prompt.get("prompt") or prompt.get("instruction")
    if isinstance(turns, str):
        return " ".join(part for part in (turns, prompt.get("input")) if part)
    asked = [turn.get("content") for turn in turns or [] if turn.get("role") == "user"]
    return str(asked[-1]) if asked else str(prompt)
