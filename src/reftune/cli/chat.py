"""`reftune chat`: talk to an adapter in the terminal."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated, Any

import typer
from rich.console import Console

from .generate import StrengthOption, StyleOption, style_for, turn
from .output import JsonFlag, consoles, emit, quiet_libraries, say

__all__ = ["chat"]

EXAMPLE = """Talk to an adapter.

/base QUESTION asks the base model; /quit, an empty line or Ctrl-D ends.
Each question stands alone, unless --memory keeps earlier turns in the
prompt, which /reset forgets.

Examples:

    reftune chat my-adapter

    echo "What is the capital of Japan?" | reftune chat my-adapter --json
"""
HINT = "/quit or an empty line ends; /base QUESTION asks the base model."


def chat(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter.")],
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    prompt_style: StyleOption = None,
    strength: StrengthOption = None,
    memory: Annotated[bool, typer.Option(help="Keep earlier turns in the prompt.")] = False,
    as_json: JsonFlag = False,
) -> None:
    from ..generation import generate_texts
    from ..models import load_adapter

    results, progress = consoles(as_json)
    quiet_libraries()
    model, tokenizer = load_adapter(adapter, base=base)
    turn(model, strength, adapter=adapter)
    style = style_for(adapter, tokenizer, chosen=prompt_style, console=progress)
    keeps = memory and style.style == "messages"
    if memory and not keeps:
        say(progress, f"--memory has no effect: its prompts are of the style {style.style!r}", style="dim")
    turns: list[dict[str, str]] = []
    earlier: list[dict[str, str]] = []
    if sys.stdin.isatty():
        say(progress, f"{HINT} /reset forgets earlier turns." if keeps else HINT, style="dim")
    while (line := _read(progress)) is not None:
        command, _, question = line.partition(" ")
        if line in ("/quit", "/exit"):
            break
        if command == "/reset":
            earlier = []
            continue
        if command.startswith("/") and (command != "/base" or not question.strip()):
            say(progress, f"{command!r} is no command; valid are /base QUESTION, /reset and /quit", style="red")
            continue
        asks_base = command == "/base"
        question = question.strip() if asks_base else line
        record: dict[str, Any] = style.record(question)
        if keeps:
            record["messages"][-1:-1] = earlier
        with model.disable_adapter() if asks_base else nullcontext():
            answer = generate_texts(model, tokenizer, [record], max_new_tokens=max_new_tokens)[0]
        if not asks_base:
            earlier += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        turns.append({"user": line, "assistant": answer})
        if not as_json or sys.stdin.isatty():
            say(results, answer)
    if as_json:
        emit({"adapter": adapter, "turns": turns})


chat.__doc__ = EXAMPLE


def _read(console: Console) -> str | None:
    """A line of the user, None at the end: of a pipe its end, in a terminal also an empty line."""
    if sys.stdin.isatty():
        console.print("[bold green]you[/bold green] ", end="")
        return sys.stdin.readline().strip() or None
    return next((line.strip() for line in sys.stdin if line.strip()), None)
