"""What the contract gives to the models: rows of known lengths, and the same rows padded.

Must not know: anything of reftune.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .recipe import VOCAB

MEL_FRAMES = 64
DECODER_TOKENS = 4


class Rows(NamedTuple):
    """Token ids of some rows and how many of each are the prompt."""

    tokens: list[Tensor]
    prompts: list[int]

    @property
    def width(self) -> int:
        return max(map(len, self.tokens))

    def start(self, row: int, side: str) -> int:
        """Column of the first token of a row that is padded at `side`."""
        return self.width - len(self.tokens[row]) if side == "left" else 0

    def padded(self, side: str) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, T]."""
        ids = torch.zeros(len(self.tokens), self.width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, tokens in enumerate(self.tokens):
            at = self.start(i, side)
            ids[i, at : at + len(tokens)], mask[i, at : at + len(tokens)] = tokens, 1
        return ids, mask

    def alone(self, row: int) -> Rows:
        return Rows([self.tokens[row]], [self.prompts[row]])

    def only_prompts(self) -> Rows:
        return Rows([t[:n] for t, n in zip(self.tokens, self.prompts, strict=True)], self.prompts)

    def of_one_length(self) -> Rows:
        """The ends of the rows, so that none is padded."""
        n = min(map(len, self.tokens))
        return Rows([tokens[-n:].clone() for tokens in self.tokens], [min(self.prompts)] * len(self.tokens))

    def labels(self, side: str) -> Tensor:
        """Labels of the responses."""
        labels = self.padded(side)[0].clone()
        for i, tokens in enumerate(self.tokens):
            at = self.start(i, side)
            labels[i, : at + self.prompts[i]] = -100
            labels[i, at + len(tokens) :] = -100
        return labels


def rows(seed: int = 0) -> Rows:
    """Three rows, of which the last is short, and none is as long as there are rows."""
    generator = torch.Generator().manual_seed(seed)
    # above the ids that a tiny model takes for special, below those of its images
    tokens = [torch.randint(3, 40, (n,), generator=generator) for n in (8, 6, 4)]
    for row in tokens:
        # the token that ends a text: encoder-decoders that classify look for it
        row[-1] = 2
    return Rows(tokens, [5, 4, 2])


def text(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What a careful caller passes to a model of text."""
    given = {"input_ids": ids, "attention_mask": mask}
    if model.can_generate():
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return accepted(model, given)


def accepted(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the arguments, those that the model's forward names."""
    parameters = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in given.items() if name in parameters or name in ("input_ids",)}


def sound(model: Any, batch: int) -> dict[str, Tensor]:
    """Of a model of speech or pictures, its main input."""
    generator = torch.Generator().manual_seed(1)
    name = model.main_input_name
    if name == "pixel_values":
        size = getattr(model.config.encoder, "image_size", 28)
        return {name: torch.randn(batch, 3, size, size, generator=generator)}
    if name == "input_values":
        return {name: torch.randn(batch, 4000, generator=generator)}
    if "SpeechEncoderDecoder" in type(model).__name__:
        return {"input_values": torch.randn(batch, 4000, generator=generator)}
    config = model.config
    mel = getattr(config, "num_mel_bins", None) or getattr(config, "input_feat_per_channel", None)
    mel = mel or getattr(getattr(config, "encoder_config", None), "num_mel_bins", None)
    mel = mel or getattr(config, "feature_projection_input_dim", 80)
    frames = 2 * getattr(config, "max_source_positions", MEL_FRAMES // 2)
    if "Whisper" in type(model).__name__:
        return {name: torch.randn(batch, mel, frames, generator=generator)}
    return {name: torch.randn(batch, MEL_FRAMES, mel, generator=generator)}


def decoder_ids(batch: int) -> Tensor:
    """What the decoder of an encoder-decoder is given: a start token and a few more."""
    return torch.tensor([[1, 21, 4, 33][:DECODER_TOKENS]] * batch)


assert VOCAB > 40
