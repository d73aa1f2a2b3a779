"""Which tokens positions mean by a text, or by turns of a chat: ids, as the tokenizer says; these are what is saved.

Must not know: models, interventions, adapters, tensors.
"""

from __future__ import annotations

import reprlib
from dataclasses import replace
from typing import Any

from .specs import Term, parse_positions, unresolved_terms

__all__ = ["resolve_texts", "turn_borders"]


def resolve_texts(positions: str, tokenizer: Any) -> str:
    """The same positions with the ids of all tokens that read as the texts, with or without a space before.

    `turn:` gets the ids by which the tokenizer's chat template begins the messages behind the first.

    Raises:
        ValueError: a text is none of the tokenizer's tokens, and the message says how it is split; or the template
            begins messages with no tokens of their own.
    """
    spec = parse_positions(positions)
    wanted = unresolved_terms([spec])
    if not wanted:
        return str(spec)
    found: dict[str, list[int]] = {}
    if any(term.texts for term in wanted):
        ids = sorted(tokenizer.get_vocab().values())
        read = tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=False)
        for number, text in zip(ids, read, strict=True):
            for name in {text, text.removeprefix(" ")}:
                found.setdefault(name, []).append(number)
    borders = None
    if any(not term.texts for term in wanted):
        borders = turn_borders(tokenizer)
        if borders is None:
            raise ValueError(
                f"positions={reprlib.repr(positions)}: this tokenizer's chat template begins messages with no tokens "
                "that stand nowhere else, or there is none; name those that begin a turn: turn(<ids>):… or "
                'turn("<text>"):…'
            )

    def with_ids(term: Term) -> Term:
        if not term.texts:
            assert borders is not None
            return term._replace(ids=borders)
        for text in term.texts:
            if text not in found:
                pieces = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
                raise ValueError(
                    f"positions={reprlib.repr(positions)}: {text!r} is no token of this tokenizer, which reads it as "
                    f"{pieces}; name texts that are one token"
                )
        ids = tuple(sorted({i for text in term.texts for i in found[text]}))
        return term._replace(kind="id" if term.kind == "text" else term.kind, ids=ids, texts=())

    terms, without = (tuple(with_ids(t) if t in wanted else t for t in part) for part in (spec.terms, spec.without))
    return str(replace(spec, terms=terms, without=without))


def turn_borders(tokenizer: Any) -> tuple[int, ...] | None:
    """The ids by which a chat template begins messages, so that they stand at these borders and nowhere else.

    None where there are no such, added to the vocabulary for that.  Looked at are the second and the third message of
    conversations, what begins the answer that is to come, and whether the text up to each is the conversation up to it.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    found = {_borders_of(tokenizer, contents) for contents in (("a", "b", "c"), ("some words", "other ones", "1 + 1"))}
    ids = found.pop()
    # any other may stand in a message too
    own = set(tokenizer.added_tokens_decoder)
    return ids if not found and ids and own.issuperset(ids) else None


def _borders_of(tokenizer: Any, contents: tuple[str, ...]) -> tuple[int, ...]:
    messages = [{"role": "assistant" if i % 2 else "user", "content": content} for i, content in enumerate(contents)]

    def ids_of(count: int, *, asked: bool = False) -> list[int]:
        text = tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=asked)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    try:
        parts = [ids_of(1), ids_of(2), ids_of(3), ids_of(3, asked=True)]
    except Exception:  # noqa: BLE001 — a template may raise anything
        return ()
    whole, starts = parts[-1], [len(part) for part in parts[:-1]]
    if starts[-1] == len(whole):
        # this template begins no answer
        starts.pop()
    if any(whole[: len(part)] != part for part in parts) or len(set(starts)) < len(starts):
        return ()
    ids = {whole[start] for start in starts}
    at = [i for i, token in enumerate(whole) if token in ids]
    # the first message may have one too
    return tuple(sorted(ids)) if at[-len(starts) :] == starts and len(at) <= len(starts) + 2 else ()
