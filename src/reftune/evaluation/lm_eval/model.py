"""`ReftuneLM`: the harness's model of transformers, with a ReFT adapter that is told where each prompt ends.

The context of a request is the prompt and the continuation is the response.  The harness sorts requests, groups those
that share a call, cuts them to the model's length, pads them and calls the model with tokens only.  So prompts are
kept by the tokens that will be seen, and looked up when they are: nothing here depends on how batches are made.

Must not know: tasks and scores.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from lm_eval.models.huggingface import HFLM
from peft import PeftConfig
from torch import Tensor, nn

from ...errors import PositionError, ReftuneError
from ...models import is_adapter, put_adapter, resolve_model
from ...peft_type import REFT
from ...tuner.context import PROMPT_LENGTH
from ...tuner.layer import ReftLayer

__all__ = ["ReftuneLM"]

PADDING = 0
"""What the harness fills rows up with, on the right."""

# the type of a decorated class is not known to type checkers
Harness: Any = HFLM

Request: TypeAlias = tuple[Any, list[int], list[int]]
"""What the answer is cached by, context, continuation."""


@dataclass
class Round:
    """Requests whose tokens tell their prompts: their numbers, and the length of the prompt by the tokens."""

    numbers: list[int] = field(default_factory=list)
    prompts: dict[tuple[int, ...], int] = field(default_factory=dict)


class ReftuneLM(Harness):
    """`--model reftune`: all arguments of `--model hf`, and `adapter`, a folder or a name on the Hub.

    `pretrained` may be left out if the adapter names its base.  Adapters of other methods are loaded as `peft=` is.
    """

    def __init__(self, pretrained: Any = None, *, adapter: str | None = None, **arguments: Any) -> None:
        self._adapter: PeftConfig | None = None
        self._folder = adapter
        self._prompts: dict[tuple[int, ...], int] | None = {}
        if adapter is not None:
            config = _config_of(adapter)
            pretrained = pretrained or config.base_model_name_or_path
            if config.peft_type == REFT:
                self._adapter = config
            elif arguments.setdefault("peft", adapter) != adapter:
                raise ReftuneError(
                    f"adapter={adapter} and peft={arguments['peft']}: only one of two may be without ReFT"
                )
        if not pretrained:
            raise ReftuneError("there is no model: give pretrained=NAME, or an adapter= that names its base")
        if isinstance(pretrained, str):
            pretrained = _base_of(pretrained)
        elif adapter is not None:
            raise ReftuneError(f"adapter={adapter} needs the name of its base, not a model that is loaded")
        super().__init__(pretrained, **arguments)

    def _create_model(self, pretrained: str, *args: Any, **kwargs: Any) -> None:
        super()._create_model(pretrained, *args, **kwargs)
        if self._adapter is None or self._folder is None:
            return
        self._model: Any = put_adapter(self._model, self._folder, self._adapter, name=pretrained)

    # --- log-likelihoods ------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Any]:
        if not self._needs_prompts():
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        answers: dict[int, Any] = {}
        for found in rounds_of(requests, self.max_length):
            chosen = [requests[i] for i in found.numbers]
            with self._knowing(found.prompts):
                scored = super()._loglikelihood_tokens(chosen, disable_tqdm, override_bs)
            answers.update(zip(found.numbers, scored, strict=True))
            if self.batch_size == "auto" and not override_bs:
                # no text of a later round is longer; the harness cannot size batches of very few requests
                override_bs = min(self.batch_sizes.values())
        return [answers[i] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The prompt is the token that the harness puts before the text, so that it must be in the same call.

        Raises:
            PositionError: a text of several calls, unless the adapter edits all tokens.
        """
        if self._needs_prompts() and any(positions != "all" for positions in self._positions()):
            for request in requests:
                length = len(self.tok_encode(request.args[0]))
                if length > self.max_length:
                    raise PositionError(
                        f"a text of {length} tokens is scored in pieces of {self.max_length}, and only the first has "
                        f"a prompt for positions {', '.join(sorted(self._positions()))}. Give max_length={length} or "
                        "more if the model can do it, shorter texts, or an adapter with positions 'all'"
                    )
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self._needs_prompts():
            return super()._model_call(inps, *args, **kwargs)
        told = partial(_tell, self._lengths(inps))
        # before the hook that takes the lengths off again
        handle = self.model.register_forward_pre_hook(told, prepend=True, with_kwargs=True)
        try:
            return super()._model_call(inps, *args, **kwargs)
        finally:
            handle.remove()

    def _detect_batch_size(self, *args: Any, **kwargs: Any) -> int:
        with self._knowing(None):
            return super()._detect_batch_size(*args, **kwargs)

    @contextmanager
    def _knowing(self, prompts: dict[tuple[int, ...], int] | None) -> Iterator[None]:
        """Prompts of the calls within; None: logits are not looked at, so that any prompt will do."""
        before, self._prompts = self._prompts, prompts
        try:
            yield
        finally:
            self._prompts = before

    def _lengths(self, inps: Tensor) -> list[int]:
        if self._prompts is None:
            return [inps.shape[1]] * inps.shape[0]
        try:
            return [self._prompts[key_of(row)] for row in inps.tolist()]
        except KeyError as error:
            raise PositionError(
                "the harness calls the model with tokens that are of no request, so that their prompt is not known"
            ) from error

    # --- what edits -----------------------------------------------------------------------------------------------

    def _layers(self) -> list[ReftLayer]:
        model: nn.Module = self.model
        return [module for module in model.modules() if isinstance(module, ReftLayer)]

    def _needs_prompts(self) -> bool:
        """Encoder-decoders know their prompts: all that the encoder reads."""
        return self.backend == "causal" and bool(self._layers())

    def _positions(self) -> set[str]:
        return {str(group.spec) for layer in self._layers() for groups in layer.groups.values() for group in groups}


def rounds_of(requests: Sequence[Request], max_length: int) -> list[Round]:
    """Requests in as few rounds as let tokens tell the prompt; one, but for texts that are split at two places.

    The harness computes such texts in one call, which is not right where their edits differ.
    """
    rounds: list[Round] = []
    for i, (_, context, continuation) in enumerate(requests):
        # as the harness cuts them: from the left, and the last token is not read
        tokens = (context + continuation)[-(max_length + 1) :][:-1]
        key, length = key_of(tokens), len(tokens) - len(continuation) + 1
        fitting = (found for found in rounds if found.prompts.setdefault(key, length) == length)
        chosen = next(fitting, None)
        if chosen is None:
            chosen = Round(prompts={key: length})
            rounds.append(chosen)
        chosen.numbers.append(i)
    return rounds


def key_of(tokens: list[int]) -> tuple[int, ...]:
    """Tokens without what may be padding: it may be text as well, which both sides of the look-up then lack."""
    end = len(tokens)
    while end and tokens[end - 1] == PADDING:
        end -= 1
    return tuple(tokens[:end])


def _tell(lengths: list[int], model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, PROMPT_LENGTH: lengths}


def _config_of(adapter: str) -> PeftConfig:
    if not is_adapter(adapter):
        raise ReftuneError(f"there is no adapter in adapter={adapter}: it has no adapter_config.json")
    return PeftConfig.from_pretrained(adapter)


def _base_of(name: str) -> str:
    resolved = resolve_model(name)
    if Path(resolved).is_dir() and is_adapter(resolved):
        raise ReftuneError(f"pretrained={name} holds an adapter: write adapter={name}, and pretrained= its base")
    return resolved
