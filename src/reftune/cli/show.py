"""`reftune show`: where an adapter edits a model, and which tokens of a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data import PromptStyle, encode_prompt
from ..errors import ReftuneError
from .generate import StyleOption, style_for
from .output import JsonFlag, consoles, emit, quiet_libraries

if TYPE_CHECKING:
    from peft import PeftModel

    from ..positions import PositionSpec
    from ..tuner import ReftLayer

__all__ = ["show"]

EXAMPLE = """Show which layers and tokens an adapter edits.

For a model it shows what a configuration would edit in it.

Examples:

    reftune show my-adapter --prompt "What is the capital of Japan?"

    reftune show smollm2 --positions f7+l7 --layers "3;9;18;24"
"""
DEFAULT_PROMPT = "What is the capital of Japan?"
COLOURS = ("black on bright_yellow", "black on bright_cyan", "black on bright_magenta", "black on bright_green")


class Edit(NamedTuple):
    """One group of an adapter at one site."""

    layer: int
    module: str
    component: str
    intervention: str
    positions: str
    rank: int
    parameters: int
    tokens: tuple[int, ...] | None
    """Indices of the edited prompt tokens, None if none of the prompt is edited."""


def show(
    target: Annotated[
        str, typer.Argument(help="Folder or Hub name of an adapter or of a model.", metavar="ADAPTER|MODEL")
    ],
    prompt: Annotated[str, typer.Option(help="A prompt to mark the edited tokens of.")] = DEFAULT_PROMPT,
    prompt_style: StyleOption = None,
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    rank: Annotated[int, typer.Option(help="For a model: rank of the configuration.")] = 4,
    layers: Annotated[str, typer.Option(help="For a model: layers of the configuration.")] = "all",
    positions: Annotated[str, typer.Option(help="For a model: positions of the configuration.")] = "f7+l7",
    intervention: Annotated[str, typer.Option(help="For a model: Φ of the configuration.")] = "loreft",
    as_json: JsonFlag = False,
) -> None:
    from peft import PeftModel, get_peft_model

    from ..config import ReftConfig
    from ..models import is_adapter, load_adapter, load_base

    results, progress = consoles(as_json)
    quiet_libraries()
    if base is not None or is_adapter(target):
        model, tokenizer = load_adapter(target, base=base)
        if not any(_layers(model)):
            kinds = ", ".join(str(config.to_dict()["peft_type"]) for config in model.peft_config.values())
            raise ReftuneError(
                f"{target!r} is an adapter of the method {kinds}, not of ReFT: it edits no hidden states"
            )
        style = style_for(target, tokenizer, chosen=prompt_style, console=progress)
    else:
        # what is wrong with the configuration is told before the model is loaded
        config = ReftConfig(
            r=rank, layers=layers, positions=positions, intervention=intervention, task_type="CAUSAL_LM"
        )
        bare, tokenizer = load_base(target)
        adapted = get_peft_model(bare, config)
        assert isinstance(adapted, PeftModel)
        model = adapted
        style = PromptStyle(prompt_style or ("messages" if tokenizer.chat_template else "prompt"))
    ids = encode_prompt(style.record(prompt), tokenizer)
    edits = [edit for name, layer in _layers(model) for edit in _edits(name, layer, len(ids))]
    trained = sum(edit.parameters for edit in edits)
    total = sum(p.numel() for name, p in model.named_parameters() if "intervention_" not in name)
    pieces = [str(tokenizer.decode([token])) for token in ids]
    if as_json:
        emit(_as_dict(target, edits, pieces, trained, total))
        return
    _print(results, edits, pieces)
    results.print(
        f"\n[bold]{trained:,}[/bold] parameters, {100 * trained / (total + trained):.4f}% of all {total + trained:,}"
    )


show.__doc__ = EXAMPLE


def _layers(model: PeftModel) -> Iterable[tuple[str, ReftLayer]]:
    from ..tuner import ReftLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, ReftLayer))


def _edits(name: str, layer: ReftLayer, prompt_tokens: int) -> Iterable[Edit]:
    """What each group of each adapter does at one site, on a prompt of so many tokens."""
    from ..positions import joint_span

    groups = [(adapter, group) for adapter in layer.groups for group in layer.groups[adapter]]
    joint = joint_span([group.spec for _, group in groups])
    for adapter, group in groups:
        units = [unit for unit in layer.units(adapter) if unit.group is group]
        count = sum(p.numel() for unit in units for p in layer.phi(adapter, unit).parameters())
        spec = group.spec
        tokens: tuple[int, ...] | None = None
        if spec.scope in ("prompt", "all"):
            tokens = tuple(range(prompt_tokens))
        elif spec.scope == "span":
            tokens = _edited(spec, joint, prompt_tokens)
        host = name.rpartition(".")[0].removeprefix("base_model.model.")
        yield Edit(layer.layer, host, group.component, group.intervention, str(spec), group.r, count, tokens)


def _edited(spec: PositionSpec, joint: PositionSpec, prompt_tokens: int) -> tuple[int, ...]:
    """Prompt tokens that `spec` edits where all groups together have the slots of `joint`."""
    import torch

    from ..positions import own_slots, segments_of_full_rows, slots

    found = slots(joint, segments_of_full_rows(1, prompt_tokens, torch.device("cpu")), 0, prompt_tokens)
    return tuple(sorted(int(found.columns[0, i]) for i in own_slots(spec, joint) if found.valid[0, i]))


def _as_dict(target: str, edits: list[Edit], pieces: list[str], trained: int, total: int) -> dict[str, Any]:
    sites = [{key: value for key, value in edit._asdict().items() if key != "tokens"} for edit in edits]
    tokens = [
        {"index": i, "token": piece, "layers": sorted({e.layer for e in edits if e.tokens and i in e.tokens})}
        for i, piece in enumerate(pieces)
    ]
    return {
        "target": target,
        "sites": sites,
        "trainable_parameters": trained,
        "trainable_percent": round(100 * trained / (total + trained), 4),
        "prompt_tokens": tokens,
    }


def _print(console: Console, edits: list[Edit], pieces: list[str]) -> None:
    """A table of the sites, layers that are alike in one row, and the prompt with the edited tokens marked."""
    alike: dict[tuple[Any, ...], list[Edit]] = {}
    for edit in edits:
        key = (edit.component, edit.intervention, edit.positions, edit.rank, edit.parameters, edit.tokens)
        alike.setdefault(key, []).append(edit)
    table = Table(title="sites")
    for column in ("layers", "component", "intervention", "positions", "rank", "parameters a layer"):
        table.add_column(column)
    for rows in alike.values():
        first = rows[0]
        where = _ranges([edit.layer for edit in rows])
        table.add_row(
            where, first.component, first.intervention, first.positions, str(first.rank), f"{first.parameters:,}"
        )
    console.print(table)
    for i, rows in enumerate(alike.values()):
        first, style = rows[0], COLOURS[i % len(COLOURS)]
        console.print(f"\n[bold]layers {_ranges([edit.layer for edit in rows])}[/bold], edited tokens marked:")
        console.print(_picture(console, first.tokens or (), pieces, style))
        if first.positions == "all":
            console.print(Text("… and every generated token", style=style))
        if first.positions == "response":
            console.print(Text("no token of the prompt, every generated token", style=style))


def _picture(console: Console, edited: tuple[int, ...], pieces: list[str], style: str) -> Text:
    """The prompt with the edited tokens in colour; where there is none (a pipe, NO_COLOR), in brackets."""
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    text = Text()
    for index, piece in enumerate(pieces):
        marked = index in edited
        shown = piece.replace("\n", "⏎" if marked else "⏎\n")
        text.append(shown if coloured or not marked else f"⟦{shown}⟧", style=style if marked else "dim")
    return text


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] → "0–2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts)
