"""`reftune explain A --against B`: two adapters of one base model side by side."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..errors import ReftuneError
from .generate import style_for
from .output import bars, emit, say
from .tables import plain, show, table_of

if TYPE_CHECKING:
    from ..analysis.explain import Text

__all__ = ["explain_against"]

# Rows of a table in the terminal; --json and --html have all.
SHOWN = 10


def explain_against(
    adapter: str,
    against: str,
    prompts: Sequence[str | dict[str, Any]],
    *,
    answer: str | None,
    base: str | None,
    dtype: str,
    limit: int,
    max_new_tokens: int,
    prompt_style: Any,
    html: Path | None,
    as_json: bool,
    consoles: tuple[Console, Console],
) -> None:
    """Run the command."""
    from ..adapter_files import adapter_style
    from ..analysis.explain import compared, same_answers, traced
    from ..interop.parts import base_of
    from ..models import load_tokenizer

    results, progress = consoles
    if adapter == against:
        raise ReftuneError(f"{adapter!r} against itself is the same in all; name another adapter by --against")
    name = base or base_of([adapter, against])
    tokenizer = load_tokenizer(name)
    style = style_for(adapter, tokenizer, chosen=prompt_style, console=progress)
    records = [style.record(p) if isinstance(p, str) else p for p in prompts]
    notes = []
    other_style = adapter_style(against)
    if prompt_style is None and other_style is not None and other_style != style:
        notes.append(f"{against}: was trained on prompts written in another way than {adapter}, but is asked as that")
    with bars(progress) as done:
        texts, own = _answered(adapter, name, dtype, records, answer, max_new_tokens, done)
        first = traced(own, texts[:limit], progress=lambda n: done(f"{adapter} traced", n, len(texts[:limit])))
        del own
        gc.collect()
        others, own = _answered(against, name, dtype, records, None, max_new_tokens, done)
        second = traced(own, texts[:limit], progress=lambda n: done(f"{against} traced", n, len(texts[:limit])))
    for label, trace in ((adapter, first), (against, second)):
        notes += [f"{label}: {note}" for note in trace.notes]
    result = {
        "adapter": adapter,
        "against": against,
        "methods": [first.method, second.method],
        "texts": len(first.texts),
        **compared(first, second),
        "answers": same_answers(texts, others),
        "notes": notes,
    }
    if html is not None:
        from ..analysis.explain.against_page import write_compared

        write_compared(result, html)
    if as_json:
        emit({**result, "html": html and str(html)})
        return
    _print(results, result)
    if html is not None:
        say(results, f"Page: {html}")


def _answered(
    adapter: str,
    base: str,
    dtype: str,
    records: Sequence[Any],
    answer: str | None,
    max_new_tokens: int,
    done: Any,
) -> tuple[list[Text], Any]:
    """The prompts with the answers of an adapter, and the model with it."""
    import torch

    from ..analysis.explain import text_of
    from ..models import load_adapter

    model, tokenizer = load_adapter(adapter, base=base, dtype=dtype)
    if torch.cuda.is_available():
        model.to("cuda")
    texts = []
    for i, record in enumerate(records, start=1):
        texts.append(text_of(model, tokenizer, record, answer=answer, max_new_tokens=max_new_tokens))
        done(f"{adapter} answering", i, len(records))
    return texts, model


def _print(console: Console, found: dict[str, Any]) -> None:
    from ..analysis.explain.against import layer_cells, next_facts

    first, second = found["adapter"], found["against"]
    say(console, f"first: {first} ({found['methods'][0]}), second: {second} ({found['methods'][1]})")
    heads = ("first, % of stream", "second, % of stream", "cosine", "CKA", "angles, degrees")
    table = table_of(f"edits behind each layer, over {found['texts']} texts", "layer", *heads)
    for row in found["layers"]:
        table.add_row(str(row["layer"]), *layer_cells(row, ""))
    show(console, table)
    table = table_of("the next token", "", "")
    for name, value in next_facts(found):
        table.add_row(name, plain(value))
    table.columns[1].justify = "left"
    show(console, table)
    answers = found["answers"]
    title = f"answers: {answers['same']} of {answers['prompts']} are the same"
    table = table_of(title, "first", "second", "same tokens", left=2)
    for row in sorted(answers["rows"], key=lambda row: row["same"])[:SHOWN]:
        same = "all" if row["same"] else str(row["common"])
        table.add_row(plain(repr(row["answer"])), plain(repr(row["other"])), same)
    show(console, table)
    for note in found["notes"]:
        say(console, f"not told: {note}", style="yellow")
