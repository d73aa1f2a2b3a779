"""`reftune convert`: adapters of other libraries become reftune's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..data.style import PromptStyle
from ..specs import parse_positions
from .generate import StyleOption
from .output import JsonFlag, command, consoles, emit, load_package, quiet_libraries, say
from .saved import read_saved
from .show import as_dict, print_sites

__all__ = ["BaseOption", "OutputOption", "app", "report"]

OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the new adapter.")]
BaseOption = Annotated[str, typer.Option(help="The model that it was trained on: a folder or a Hub name.")]

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Make an adapter of reftune's of one of another library."
)


def pyreft(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that reft_model.save(DIR) wrote.", metavar="DIR")],
    output: OutputOption,
    base: BaseOption,
    positions: Annotated[str, typer.Option(help="Positions that it was trained at: f<p>, l<s> or f<p>+l<s>.")],
    before_last: Annotated[
        bool,
        typer.Option(
            "--before-last", help="The last positions end one token before the prompt's last, as in pyreft's scripts."
        ),
    ] = False,
    act_fn: Annotated[str | None, typer.Option(help="Activation that it was trained with.  [none]")] = None,
    prompt_style: StyleOption = None,
    as_json: JsonFlag = False,
) -> None:
    load_package()
    from ..interop import pyreft as checkpoints

    results, _ = consoles(as_json)
    quiet_libraries()
    style = None if prompt_style is None else PromptStyle(prompt_style)
    checkpoints.convert(
        checkpoint, output, base=base, positions=positions, before_last=before_last, act_fn=act_fn, style=style
    )
    notes = []
    if parse_positions(positions).last:
        here = "one token before the last of the prompt" if before_last else "with the last token of the prompt"
        others = (
            "without --before-last it ends with the last" if before_last else "with --before-last, one token before it"
        )
        notes.append(
            f"the suffix was taken to end {here}; {others}. The checkpoint does not say: pyreft's make_…_data_module "
            "functions end it with the last token, its Dataset classes one before"
        )
    if act_fn is None:
        notes.append("no activation was assumed, which a checkpoint does not say either (--act-fn)")
    report(results, output, [*notes, *unsaid(style)], as_json=as_json)


pyreft.__doc__ = """Convert a checkpoint of pyreft 0.0.5 to 0.1.0.

A checkpoint does not say at which positions it edits: they come from the
data that it was trained on, so --positions names them.  Where pyreft's
scripts trained it, the last positions end one token before the last of the
prompt: --before-last.

Examples:

    reftune convert pyreft my-reft --base meta-llama/Llama-2-7b-hf --positions l1 --output my-adapter

    reftune convert pyreft my-reft --base smollm2 --positions f7+l7 --before-last --output my-adapter
"""
app.command("pyreft")(pyreft)


def adapterhub(
    adapter: Annotated[Path, typer.Argument(help="Folder that model.save_adapter(DIR, NAME) wrote.", metavar="DIR")],
    output: OutputOption,
    base: BaseOption,
    intervention: Annotated[
        Literal["noreft", "direft"] | None,
        typer.Option(help="What it was trained as, where its files do not say.", show_default=False),
    ] = None,
    prompt_style: StyleOption = None,
    as_json: JsonFlag = False,
) -> None:
    load_package()
    from ..interop import adapterhub as saved

    results, _ = consoles(as_json)
    quiet_libraries()
    style = None if prompt_style is None else PromptStyle(prompt_style)
    _, notes = saved.convert(adapter, output, base=base, intervention=intervention, style=style)
    report(results, output, [*notes, *unsaid(style)], as_json=as_json)


adapterhub.__doc__ = """Convert a ReFT adapter of AdapterHub's adapters 1.x.

Its files do not tell a DiReFT from a NoReFT: --intervention does.

Example:

    reftune convert adapterhub their-adapter --base smollm2 --output my-adapter
"""
app.command("adapterhub")(adapterhub)


def unsaid(style: PromptStyle | None) -> list[str]:
    """What the files of others never say."""
    if style is not None:
        return []
    return ["nothing says how prompts were written in its training: --prompt-style, now or when it is asked, does"]


def report(console: Console, output: Path, notes: list[str], *, as_json: bool, **more: Any) -> None:
    """What was written, as its files tell it; without the sites where only the model knows them (layers -1)."""
    saved = read_saved(output)
    if as_json:
        told = {"target": str(output)} if saved is None else as_dict(str(output), saved.edits)
        emit({**told, "notes": notes, **more})
        return
    if saved is not None:
        print_sites(console, saved.edits)
    for note in notes:
        say(console, f"- {note}")
    say(console, f'\nwritten to {output}; {command()} show {output} --prompt "..." marks the edited tokens')
