"""`reftune show`: where an adapter edits a model, and which tokens of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data import PromptStyle, encode_marked
from ..errors import ReftuneError
from ..specs import PositionSpec, joint_span, own_slots, parse_positions
from ..values import ranges
from .generate import StyleOption, style_for
from .output import JsonFlag, consoles, emit, has_colours, load_package, quiet_libraries, say
from .saved import Edit, read_saved

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from ..tuner import ReftLayer

__all__ = ["as_dict", "print_sites", "show"]

EXAMPLE = """Show which layers and tokens an adapter edits.

An adapter in a folder is told of from its files at once; with --prompt its
base model is loaded too, and the edited tokens of the prompt are marked.
For a model it shows what a configuration would edit in it.

Examples:

    reftune show my-adapter

    reftune show my-adapter --prompt "What is the capital of Japan?"

    reftune show smollm2 --positions f7+l7 --layers "3;9;18;24"
"""
DEFAULT_PROMPT = "What is the capital of Japan?"
COLOURS = ("black on bright_yellow", "black on bright_cyan", "black on bright_magenta", "black on bright_green")


def show(
    target: Annotated[
        str, typer.Argument(help="Folder or Hub name of an adapter or of a model.", metavar="ADAPTER|MODEL")
    ],
    prompt: Annotated[str | None, typer.Option(help="A prompt to mark the edited tokens of.")] = None,
    prompt_style: StyleOption = None,
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    rank: Annotated[int, typer.Option(help="For a model: rank of the configuration.")] = 8,
    layers: Annotated[str, typer.Option(help="For a model: layers of the configuration.")] = "all",
    positions: Annotated[str, typer.Option(help="For a model: positions of the configuration.")] = "prompt",
    intervention: Annotated[str, typer.Option(help="For a model: Φ of the configuration.")] = "loreft",
    as_json: JsonFlag = False,
) -> None:
    results, progress = consoles(as_json)
    if prompt is None and base is None and prompt_style is None:
        saved = read_saved(target)
        if saved is not None:
            # one that cannot be is refused here as by every other verb
            PromptStyle.read(target)
            if as_json:
                emit(as_dict(target, saved.edits))
            else:
                print_sites(results, saved.edits)
                results.print(f"\n[bold]{_parameters(saved.edits):,}[/bold] parameters")
                say(
                    results,
                    f'base model: {saved.base or "not named"}; --prompt "..." loads it and marks the edited tokens',
                )
            return
    load_package()
    quiet_libraries()
    if base is not None or _is_adapter(target):
        model, tokenizer = _loaded(target, base)
        style = style_for(target, tokenizer, chosen=prompt_style, console=progress)
    else:
        model, tokenizer = _configured(
            target, r=rank, layers=layers, positions=positions, intervention=intervention, task_type="CAUSAL_LM"
        )
        style = PromptStyle(prompt_style or ("messages" if tokenizer.chat_template else "prompt"))
    ids, spans = encode_marked(style.record(DEFAULT_PROMPT if prompt is None else prompt), tokenizer)
    edits = [edit for name, layer in _layers(model) for edit in _edits(name, layer, ids, spans)]
    total = sum(p.numel() for name, p in model.named_parameters() if "intervention_" not in name)
    pieces = [str(tokenizer.decode([token])) for token in ids]
    if as_json:
        emit(as_dict(target, edits, pieces, total))
        return
    print_sites(results, edits)
    _print_prompt(results, edits, pieces)
    trained = _parameters(edits)
    results.print(
        f"\n[bold]{trained:,}[/bold] parameters, {100 * trained / (total + trained):.4f}% of all {total + trained:,}"
    )


show.__doc__ = EXAMPLE


def _is_adapter(target: str) -> bool:
    from ..adapter_files import is_adapter

    return is_adapter(target)


def _loaded(target: str, base: str | None) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A saved adapter on its base model.

    Raises:
        ReftuneError: it is of another method.
    """
    from ..models import load_adapter

    model, tokenizer = load_adapter(target, base=base)
    if not any(_layers(model)):
        kinds = ", ".join(str(config.to_dict()["peft_type"]) for config in model.peft_config.values())
        raise ReftuneError(f"{target!r} is an adapter of the method {kinds}, not of ReFT: it edits no hidden states")
    return model, tokenizer


def _configured(target: str, **options: Any) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A model with a fresh adapter of this configuration."""
    from peft import PeftModel, get_peft_model

    from ..config import ReftConfig
    from ..models import load_base

    # what is wrong with the configuration is told before the model is loaded
    config = ReftConfig(**options)
    bare, tokenizer = load_base(target)
    model = get_peft_model(bare, config.resolve_texts(tokenizer))
    assert isinstance(model, PeftModel)
    return model, tokenizer


def _layers(model: PeftModel) -> Iterable[tuple[str, ReftLayer]]:
    from ..tuner import ReftLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, ReftLayer))


def _edits(name: str, layer: ReftLayer, ids: Sequence[int], spans: Sequence[int] | None) -> Iterable[Edit]:
    """What each group of each adapter does at one site, on a prompt of these tokens, some of them marked."""
    groups = [(adapter, group) for adapter in layer.groups for group in layer.groups[adapter]]
    joint = joint_span([group.spec for _, group in groups])
    for adapter, group in groups:
        units = [unit for unit in layer.units(adapter) if unit.group is group]
        count = sum(p.numel() for unit in units for p in layer.phi(adapter, unit).parameters())
        spec = group.spec
        tokens = None if spec.scope == "response" else _edited(spec, joint, tuple(ids), spans and tuple(spans))
        host = name.rpartition(".")[0].removeprefix("base_model.model.")
        yield Edit(layer.layer, host, group.component, group.intervention, str(spec), group.r, count, tokens)


@lru_cache
def _edited(
    spec: PositionSpec, joint: PositionSpec, ids: tuple[int, ...], spans: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Prompt tokens that `spec` edits where all groups together have the slots of `joint`."""
    import torch

    from ..positions import columns_of_slots, content_terms, named_tokens, segments_of_full_rows, unit_ranges

    if spec.scope in ("prompt", "all"):
        return tuple(range(len(ids)))
    if spec.scope == "terms":
        found: list[int] = []
        terms = content_terms([spec])
        prompt = segments_of_full_rows(1, len(ids), torch.device("cpu"))
        named = named_tokens(terms, torch.tensor([ids]), torch.tensor([spans or [0] * len(ids)]), prompt)
        kinds = [frozenset(term for term in terms if named[term][0, i]) for i in range(len(ids))]
        for holds in set(kinds):
            for start, stop, _ in unit_ranges(spec, "all", joint, len(ids), holds):
                found += [i for i in range(len(ids))[start:stop] if kinds[i] == holds]
        return tuple(sorted(found))
    columns = columns_of_slots(joint, len(ids))
    return tuple(sorted(column for slot in own_slots(spec, joint) if (column := columns[slot]) is not None))


def _parameters(edits: list[Edit]) -> int:
    return sum(edit.parameters for edit in edits)


def as_dict(
    target: str, edits: list[Edit], pieces: list[str] | None = None, total: int | None = None
) -> dict[str, Any]:
    """What --json prints; `pieces` of the prompt and `total`, the base's parameters, are not known without the base."""
    trained = _parameters(edits)
    sites = [{key: value for key, value in edit._asdict().items() if key != "tokens"} for edit in edits]
    layers: dict[int, set[int]] = {}
    for edit in edits:
        for token in edit.tokens or ():
            layers.setdefault(token, set()).add(edit.layer)
    tokens = pieces and [
        {"index": i, "token": piece, "layers": sorted(layers.get(i, ()))} for i, piece in enumerate(pieces)
    ]
    return {
        "target": target,
        "sites": sites,
        "trainable_parameters": trained,
        "trainable_percent": None if total is None else round(100 * trained / (total + trained), 4),
        "prompt_tokens": tokens,
    }


def _alike(edits: list[Edit]) -> list[list[Edit]]:
    """What differs in its layer only."""
    found: dict[tuple[Any, ...], list[Edit]] = {}
    for edit in edits:
        key = (edit.component, edit.intervention, edit.positions, edit.rank, edit.parameters, edit.tokens)
        found.setdefault(key, []).append(edit)
    return list(found.values())


def print_sites(console: Console, edits: list[Edit]) -> None:
    """A table of the sites, layers that are alike in one row."""
    table = Table(title="sites")
    for column in ("layers", "component", "intervention", "positions", "rank", "parameters a layer"):
        table.add_column(column)
    for rows in _alike(edits):
        first = rows[0]
        where = ranges([edit.layer for edit in rows])
        table.add_row(
            where, first.component, first.intervention, first.positions, str(first.rank), f"{first.parameters:,}"
        )
    console.print(table)


def _print_prompt(console: Console, edits: list[Edit], pieces: list[str]) -> None:
    """The prompt with the edited tokens marked, once for all layers that are alike."""
    for i, rows in enumerate(_alike(edits)):
        first, style = rows[0], COLOURS[i % len(COLOURS)]
        console.print(f"\n[bold]layers {ranges([edit.layer for edit in rows])}[/bold], edited tokens marked:")
        console.print(_picture(console, set(first.tokens or ()), pieces, style))
        if first.positions == "all":
            console.print(Text("… and every generated token", style=style))
        if first.positions == "response":
            console.print(Text("no token of the prompt, every generated token", style=style))
        elif first.positions != "all" and (reach := parse_positions(first.positions).reach):
            which = f"of the first {reach} generated tokens" if reach < inf else "of the generated tokens"
            console.print(Text(f"… and, as the positions say, {which}", style=style))


def _picture(console: Console, edited: set[int], pieces: list[str], style: str) -> Text:
    """The prompt with the edited tokens in colour; where there is none (a pipe, NO_COLOR), in brackets."""
    coloured = has_colours(console)
    text = Text()
    for index, piece in enumerate(pieces):
        marked = index in edited
        shown = piece.replace("\n", "⏎" if marked else "⏎\n")
        text.append(shown if coloured or not marked else f"⟦{shown}⟧", style=style if marked else "dim")
    return text
