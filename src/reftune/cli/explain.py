"""`reftune explain`: what an adapter does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import ReftuneError
from ..values import ranges
from .against import explain_against
from .generate import StyleOption, read_prompts, style_for
from .output import JsonFlag, bar, bars, consoles, emit, quiet_libraries, say
from .tables import plain, show, table_of

__all__ = ["explain"]

EXAMPLE = """See what an adapter does.

Examples:

    reftune explain my-adapter --prompt "What is the capital of Japan?"

    reftune explain my-adapter --file questions.txt --html page.html

    reftune explain my-adapter --prompt "Hi" --prune-to smaller-adapter

    reftune explain my-adapter --against other-adapter --file questions.txt

It tells where the adapter edits and how much, in which direction (by the
logit lens), to what effect on the next token, what its answer loses when a
layer, a position or a row of the rank is switched off, and what each edit
does alone. --against holds it beside another adapter of the same base, of
ReFT or another method: their directions, edits and answers.
"""
ALL_PARTS = "size,direction,effect,matters,patching"
# Rows of a table in the terminal; --json and --html have all.
SHOWN = 10


def explain(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt to explain.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Prompts; of the first all is told.")] = None,
    answer: Annotated[str | None, typer.Option(help="Explain this answer, not the adapter's own.")] = None,
    against: Annotated[str | None, typer.Option(help="Another adapter, to hold this one beside.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
    prune_to: Annotated[Path | None, typer.Option(help="Save the smallest set of layers as an adapter.")] = None,
    keep: Annotated[float, typer.Option(help="The share of the effect that this set keeps.")] = 0.9,
    parts: Annotated[str, typer.Option(help="What to tell, with commas.")] = ALL_PARTS,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of a file by which is judged what matters.")] = 8,
    top: Annotated[int, typer.Option(min=1, help="Tokens of a list.")] = 5,
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the base model: auto, float32, bfloat16, float16.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32,
    prompt_style: StyleOption = None,
    as_json: JsonFlag = False,
) -> None:
    import torch

    from ..analysis.explain import Probe, save_pruned
    from ..analysis.explain.prune import check_prune_to
    from ..analysis.explain.report import explained
    from ..models import load_adapter
    from ..reporting import check_report

    results, progress = consoles(as_json)
    quiet_libraries()
    prompts = _prompts(prompt, file, answer)
    chosen = _parts(parts, prune_to)
    if not 0 < keep <= 1:
        raise typer.BadParameter(f"--keep {keep} is not a share of the effect; use a number above 0, at most 1")
    if html is not None:
        check_report()
    if against is not None:
        if prune_to is not None or parts != ALL_PARTS:
            raise typer.BadParameter("--prune-to and --parts are of one adapter; leave them out with --against")
        explain_against(
            adapter,
            against,
            prompts,
            answer=answer,
            base=base,
            dtype=dtype,
            limit=limit,
            max_new_tokens=max_new_tokens,
            prompt_style=prompt_style,
            html=html,
            as_json=as_json,
            consoles=(results, progress),
        )
        return
    if prune_to is not None:
        check_prune_to(prune_to)
    model, tokenizer = load_adapter(adapter, base=base, dtype=dtype)
    if torch.cuda.is_available():
        model.to("cuda")
    probe = Probe(model, tokenizer)
    style = style_for(adapter, tokenizer, chosen=prompt_style, console=progress)
    records = [style.record(p) if isinstance(p, str) else p for p in prompts]
    texts = []
    with bar(progress, "answering", len(records)) as done:
        for i, record in enumerate(records, start=1):
            texts.append(probe.text(record, answer=answer, max_new_tokens=max_new_tokens))
            done(i)
    with bars(progress) as done:
        found = explained(probe, texts, parts=chosen, count=top, keep=keep, limit=limit, progress=done)
    smallest = found.get("matters", {}).get("smallest")
    if prune_to is not None:
        if smallest is None:
            raise ReftuneError(f"nothing is written to {str(prune_to)!r}: {found['notes'][-1]}")
        save_pruned(probe, smallest["layers"], prune_to, of=adapter, why=_why(found["matters"]))
    result = {"adapter": adapter, **found}
    if html is not None:
        from ..analysis.explain.page import write_explained

        write_explained(result, html)
    if as_json:
        emit({**result, "html": html and str(html), "pruned": prune_to and str(prune_to)})
        return
    _print(results, result)
    for what, path in (("Page", html), ("Smaller adapter", prune_to)):
        if path is not None:
            say(results, f"{what}: {path}")


explain.__doc__ = EXAMPLE


def _why(matters: dict[str, Any]) -> str:
    """Of a model card."""
    smallest = matters["smallest"]
    return (
        f"By `reftune explain --prune-to`: alone they keep {100 * smallest['share']:.1f} % of its effect on "
        f"{matters['texts']} prompt(s) (asked for: {100 * smallest['keep']:g} %), measured by the "
        f"{'log-likelihood of its answers' if smallest['measure'] == 'likelihood' else 'KL of the next tokens'}. "
        "Elsewhere they may keep less: score it before you use it."
    )


def _prompts(prompt: str | None, file: Path | None, answer: str | None) -> list[str | dict[str, Any]]:
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give either --prompt TEXT or --file FILE")
    prompts = [prompt] if prompt is not None else read_prompts(file or Path())
    if answer is not None and len(prompts) > 1:
        raise typer.BadParameter(f"--answer is of one prompt, but {str(file)!r} has {len(prompts)}")
    return list(prompts)


def _parts(text: str, prune_to: Path | None) -> list[str]:
    from ..analysis.explain.report import PARTS

    chosen = [name.strip() for name in text.split(",") if name.strip()]
    if not chosen or not set(chosen) <= set(PARTS):
        raise typer.BadParameter(f"--parts {text!r} is not valid; use {', '.join(PARTS)}")
    if prune_to is not None and "matters" not in chosen:
        raise typer.BadParameter("--prune-to needs the part 'matters', which finds the layers to keep")
    return chosen


# --- in the terminal --------------------------------------------------------------------------------------------------


def _print(console: Console, found: dict[str, Any]) -> None:
    text = found["text"]
    say(console, f"answer: {text['answer']!r}")
    if "size" in found:
        show(console, _sizes(found))
    if "basis" in found:
        show(console, _directions(found))
    if "next" in found:
        show(console, _next(found["next"]))
    if found.get("along"):
        show(console, _along(found["along"]))
    if "matters" in found:
        _print_matters(console, found["matters"])
    if "patching" in found:
        show(console, _patching(found["patching"]))
    for note in found["notes"]:
        say(console, f"not told: {note}", style="yellow")


def _sizes(found: dict[str, Any]) -> Table:
    size, several = found["size"], found["texts"] > 1
    which = f"mean ± spread of {found['texts']} texts" if several else "of this text"
    shown = size["positions"] if len(size["positions"]) <= SHOWN else [*size["positions"][: SHOWN - 1], "…"]
    table = table_of(f"edit / state, norms in %, {which}", "site", *shown)
    for site, means, stds in zip(size["sites"], size["mean"], size["std"], strict=True):
        cells = [
            "" if mean is None else f"{100 * mean:.1f}" + (f" ±{100 * std:.1f}" if several else "")
            for mean, std in zip(means, stds, strict=True)
        ]
        table.add_row(site, *(cells if len(cells) <= SHOWN else [*cells[: SHOWN - 1], "…"]))
    return table


def _directions(found: dict[str, Any]) -> Table:
    table = table_of("the largest edits", "site", "token", "%", "promotes", "suppresses", left=2)
    table.columns[3].justify = table.columns[4].justify = "left"
    for line in sorted(found["edits"], key=lambda line: -line["ratio"])[:SHOWN]:
        token = f"{line['position']} {line['token']!r}"
        table.add_row(
            line["site"],
            plain(token),
            f"{100 * line['ratio']:.1f}",
            _tokens(line.get("promotes")),
            _tokens(line.get("suppresses")),
        )
    return table


def _next(lines: list[dict[str, Any]]) -> Table:
    table = table_of("next token", "after", "base", "adapter", "KL, nats", left=3)
    for line in lines[:SHOWN]:
        row = (_tokens(line["base"], "p"), _tokens(line["adapter"], "p"))
        table.add_row(plain(repr(line["after"])), *row, f"{line['kl']:.3f}")
    return table


def _along(lines: list[dict[str, Any]]) -> Table:
    table = table_of(
        "along the layers, at the last token of the prompt", "behind", "base", "adapter", "KL, nats", left=3
    )
    for line in lines:
        row = (_tokens(line["base"][:2], "p"), _tokens(line["adapter"][:2], "p"))
        table.add_row(line["site"], *row, f"{line['kl']:.3f}")
    return table


def _print_matters(console: Console, matters: dict[str, Any]) -> None:
    gain = matters["adapter"] - matters["base"]
    say(
        console,
        f"\nlog-likelihood of the answers ({matters['tokens']} tokens of {matters['texts']} texts): base "
        f"{matters['base']:.2f}, adapter {matters['adapter']:.2f} nats, an effect of {gain:.2f}",
    )
    for kind in ("layers", "positions", "rows"):
        table = table_of(f"without one of the {kind}", kind, "loss, nats", "share of the effect")
        for row in matters[kind][:SHOWN]:
            share = "" if row["share"] is None else f"{100 * row['share']:.1f} %"
            table.add_row(plain(_name(row)), f"{row['loss']:.3f}", share)
        show(console, table)
        if len(matters[kind]) > SHOWN:
            say(console, f"… and {len(matters[kind]) - SHOWN} more", style="dim")
    smallest = matters["smallest"]
    if smallest is not None:
        say(
            console,
            f"\nlayers {ranges(smallest['layers'])} alone keep {100 * smallest['share']:.1f} % of the effect",
        )


def _name(row: dict[str, Any]) -> str:
    if "row" in row:
        return f"{row['site']} Φ{row['phi']} row {row['row']}"
    return str(row.get("layer", row.get("position")))


def _patching(patching: dict[str, Any]) -> Table:
    table = table_of("what each token's edits do alone", "token", "of the effect, %", "best site", "alone, %")
    order = sorted(range(len(patching["columns"])), key=lambda i: -(patching["alone"][i] or 0))
    for i in order[:SHOWN]:
        cells = [(row[i], site) for row, site in zip(patching["share"], patching["sites"], strict=True)]
        share, site = max(((s, site) for s, site in cells if s is not None), default=(None, ""))
        token = f"{patching['positions'][i]} {patching['tokens'][i]!r}"
        table.add_row(plain(token), _percent(patching["alone"][i]), site, _percent(share))
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _tokens(tokens: list[dict[str, Any]] | None, value: str = "") -> Any:
    if tokens is None:
        return ""
    shown = [f"{t['token']!r} {t[value]:.2f}" if value else repr(t["token"]) for t in tokens[:3]]
    return plain(" ".join(shown))
