"""`reftune chat`: talk to an adapter in the terminal."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..generation import generate_texts
from ..models import load_adapter
from .generate import style_for
from .output import JsonFlag, consoles, emit, quiet_libraries

__all__ = ["chat"]

EXAMPLE = """Talk to an adapter.

An empty line or Ctrl-D ends it; /reset forgets earlier turns; /base QUESTION asks the base model.

Examples:

    reftune chat my-adapter

    echo "What is the capital of Japan?" | reftune chat my-adapter --json
"""


def chat(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter.")],
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    memory: Annotated[bool, typer.Option(help="Keep earlier turns in the prompt.")] = False,
    as_json: JsonFlag = False,
) -> None:
    results, progress = consoles(as_json)
    quiet_libraries()
    model, tokenizer = load_adapter(adapter, base=base)
    style = style_for(adapter, tokenizer)
    keeps = memory and style.style == "messages"
    turns: list[dict[str, str]] = []
    earlier: list[dict[str, str]] = []
    if sys.stdin.isatty():
        progress.print("[dim]An empty line ends; /reset forgets; /base QUESTION asks the base model.[/dim]")
    while (line := _read(progress)) is not None:
        if line == "/reset":
            earlier = []
            continue
        asks_base = line.startswith("/base ")
        question = line.removeprefix("/base ")
        record: dict[str, Any] = style.record(question)
        if keeps:
            system = record["messages"][:-1]
            record = {"messages": [*system, *earlier, record["messages"][-1]]}
        if asks_base:
            with model.disable_adapter():
                answer = generate_texts(model, tokenizer, [record], max_new_tokens=max_new_tokens)[0]
        else:
            answer = generate_texts(model, tokenizer, [record], max_new_tokens=max_new_tokens)[0]
            earlier += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns.append({"user": line, "assistant": answer})
        if not as_json:
            results.print(escape(answer), highlight=False)
    if as_json:
        emit({"adapter": adapter, "turns": turns})


chat.__doc__ = EXAMPLE


def _read(console: Any) -> str | None:
    """A line of the user, None at the end."""
    if sys.stdin.isatty():
        console.print("[bold green]you[/bold green] ", end="")
    line = sys.stdin.readline().strip()
    return line or None
