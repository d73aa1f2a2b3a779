"""Control vectors as llama.cpp reads them: a constant for each layer, added at every token.

direction.<i> is added to what block i returns, counted from 0; block 0 has none (`src/llama-adapter.cpp`,
`common/common.cpp`).  An edit that is another function of h, or of some tokens only, has no such form and is refused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MissingExtraError, ReftuneError
from ..files import whole
from ..models import check_model
from ..tuner.parts import Group
from ..tuner.together import rows_of
from .parts import base_of, groups_in

__all__ = ["constants_of", "export"]


def constants_of(groups: Sequence[Group]) -> dict[int, Tensor]:
    """Layer → what is added there to every token, [d] in float64.

    Raises:
        ReftuneError: something else is edited, elsewhere, or by what is no constant.
    """
    constants: list[tuple[int, Tensor]] = []
    for group in groups:
        if group.more.get("rms") and group.kind[0] not in ("steer", "lobireft"):
            raise ReftuneError("it has rms=True, by which its edit is no constant")
        for layer, parts in group.phis.items():
            try:
                rows = rows_of(parts[0], group)
            except ValueError as error:
                raise ReftuneError(f"its edit of layer {layer} is no constant: {error}") from error
            if rows.act_fn is not None or bool(rows.W1.any()):
                raise ReftuneError(
                    f"its {group.kind[0]} of layer {layer} depends on the hidden state; a control vector is a constant "
                    "(steer, lobireft)"
                )
            constants.append((layer, rows.b @ rows.W2))
    # what cannot be helped is told first, so that nobody trains again in vain
    for group in groups:
        if group.component != "block_output":
            raise ReftuneError(f"it edits {group.component}; a control vector is added to what blocks return only")
        if group.positions != "all":
            raise ReftuneError(f"it edits the positions {group.positions!r}; a control vector is added to all tokens")
        if 0 in group.phis:
            raise ReftuneError("it edits layer 0, for which llama.cpp has no control vector")
    found: dict[int, Tensor] = {}
    for layer, constant in constants:
        found[layer] = found.get(layer, torch.zeros(())) + constant
    return found


def export(adapter: str, output: str | Path, *, base: str | None = None) -> Mapping[int, Tensor]:
    """Write the adapter in a folder or on the Hub as a control vector; returns what `constants_of` does.

    Raises:
        MissingExtraError: the package gguf is not installed.
        ReftuneError: the adapter has no such form; nothing is written then.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("gguf", extra="demo")
    import gguf  # noqa: PLC0415 — only now is it known that the extra is there

    if Path(output).exists():
        raise ReftuneError(f"{str(output)!r} is there already; name another file, or delete it first")
    name = base or base_of([adapter])
    try:
        found = constants_of(groups_in(adapter, base=name))
    except ReftuneError as error:
        raise ReftuneError(f"{adapter!r} cannot be a control vector of llama.cpp: {error}") from error
    config = check_model(name).get_text_config()
    with whole(Path(output)) as part:
        writer = gguf.GGUFWriter(part, "controlvector")
        writer.add_string("controlvector.model_hint", config.model_type)
        writer.add_uint32("controlvector.layer_count", config.num_hidden_layers)
        for layer, constant in sorted(found.items()):
            writer.add_tensor(f"direction.{layer}", constant.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return found
