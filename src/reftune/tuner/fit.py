"""Architectures whose blocks are not [row, token, width] of the call's own tokens, and what can be done there.

All of transformers' were tried (`docs/models.md`, `tests/zoo`); those that differ stand here by their model type.

Must not know: positions, adapters, how blocks are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from ..config import ReftGroup

__all__ = ["check_fit", "pads_right"]

OTHER_MODEL = "Use a model of another type"


class Unfit(NamedTuple):
    """Why an architecture cannot be edited, what to do instead, and what of it can be edited nevertheless."""

    why: str
    instead: str = OTHER_MODEL
    components: tuple[str, ...] = ()
    """Components of a block that can be edited."""
    modules: bool = False
    """Whether modules that the user names can be edited."""


_TURNED = Unfit("its blocks pass [token, row, width] on, so that rows and tokens would be mistaken for each other")
_STREAMS = Unfit(
    "its blocks pass several streams of each token on, not one hidden state",
    "Edit component='attention_output' or component='mlp_output', which are of one stream",
    ("attention_output", "mlp_output"),
    modules=True,
)
UNFIT: dict[str, Unfit] = {
    "xlnet": _TURNED,
    "fsmt": _TURNED,
    "cpmant": Unfit("it puts tokens of its own before those of the text, so that columns are not those of the call"),
    "squeezebert": Unfit("it calls its blocks past the hooks by which they are edited"),
    "reformer": Unfit("its blocks pass two streams on and compute them backwards in training, where no edit is known"),
    "prophetnet": Unfit("its decoder's blocks pass the tokens on once for each token that is predicted ahead"),
    "albert": Unfit(
        "it runs one block for all of its layers, so that no layer can be edited alone",
        "Edit what comes before the layers: target_modules=['encoder.embedding_hidden_mapping_in'] and no layers",
        modules=True,
    ),
    "hrm_text": Unfit("it runs each of its blocks several times in a call, so that no layer can be edited alone"),
    "canine": Unfit("most of its blocks see several characters as one"),
    "funnel": Unfit("its later blocks see several tokens as one"),
    **dict.fromkeys(("gemma3n_text", "deepseek_v4", "hy_v4"), _STREAMS),
}
# These lengthen the rows to a multiple of their window, behind the tokens.
PADS_RIGHT = ("longformer", "led", "pegasus_x")


def check_fit(model: nn.Module, groups: Sequence[ReftGroup] | None) -> None:
    """Refuse what the architecture cannot do; `groups` is None if the user named modules.

    Raises:
        ValueError: it names the model, says why, and what to do instead.
    """
    for name, model_type in _parts(model):
        unfit = UNFIT.get(model_type)
        if unfit is None:
            continue
        fits = unfit.modules if groups is None else all(group.component in unfit.components for group in groups)
        if not fits:
            raise ValueError(f"ReFT cannot edit {name} (model type {model_type!r}): {unfit.why}. {unfit.instead}")


def pads_right(model: nn.Module) -> bool:
    """Whether the blocks may see more columns than the call has, behind its own."""
    return any(model_type in PADS_RIGHT for _, model_type in _parts(model))


def _parts(model: nn.Module) -> list[tuple[str, str]]:
    """Class and model type of every transformers model within, the outermost first."""
    return [(type(m).__name__, m.config.model_type) for m in model.modules() if isinstance(m, PreTrainedModel)]
