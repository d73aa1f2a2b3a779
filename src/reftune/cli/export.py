"""`reftune export`: adapters as other programs read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..values import ranges
from .output import JsonFlag, consoles, emit, load_package, quiet_libraries, say

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Write an adapter as another program reads it.")


def gguf(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    as_json: JsonFlag = False,
) -> None:
    load_package()
    from ..interop.gguf import export

    results, _ = consoles(as_json)
    quiet_libraries()
    found = export(adapter, output, base=base)
    if as_json:
        emit({"adapter": adapter, "output": str(output), "layers": sorted(found)})
        return
    norms = [float(constant.norm()) for constant in found.values()]
    say(
        results,
        f"written to {output}: layers {ranges(found)}, norms from {min(norms):.3g} to {max(norms):.3g}; "
        f"llama-cli --control-vector {output} adds it",
    )


gguf.__doc__ = """Write a control vector of llama.cpp.

Of adapters that add a constant to every token (steer, lobireft with
positions all); others are refused with the reason.

Example:

    reftune export gguf my-steering --output steering.gguf
"""
app.command("gguf")(gguf)


def pyreft(
    adapter: Annotated[str, typer.Argument(help="Folder or Hub name of the adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    base: Annotated[str | None, typer.Option(help="Base model, in place of the one the adapter names.")] = None,
    as_json: JsonFlag = False,
) -> None:
    load_package()
    from ..interop.pyreft_export import export

    results, _ = consoles(as_json)
    quiet_libraries()
    found = export(adapter, output, base=base)
    phis = [{"layer": layer, "component": component, "class": kind} for layer, component, kind in found.phis]
    where = {"positions": found.positions, "share_weights": found.share_weights}
    if as_json:
        emit({"adapter": adapter, "output": str(output), **where, "interventions": phis, "notes": found.notes})
        return
    layers = ranges({layer for layer, _, _ in found.phis})
    say(results, f"written to {output}: {len(phis)} interventions in layers {layers}")
    for note in found.notes:
        say(results, f"- {note}")
    say(
        results,
        "\nits positions are not in it; with pyreft: pyreft.ReftModel.load(DIR, model), and "
        f"get_intervention_locations(positions={found.positions!r}, share_weights={found.share_weights}, "
        f"num_interventions={len(phis)}, last_position=the length of the prompt)",
    )


pyreft.__doc__ = """Write a checkpoint that pyreft 0.0.5 to 0.1.0 loads.

Of adapters at the positions f<p>, l<s> or f<p>+l<s>; what pyreft cannot say,
such as an activation, is refused with the reason.

Example:

    reftune export pyreft my-adapter --output my-reft
"""
app.command("pyreft")(pyreft)
