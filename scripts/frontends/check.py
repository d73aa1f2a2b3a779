"""What a tool has trained: `python check.py MODEL ADAPTER PROBE POSITIONS each|last [--pairs] [--style]`.

The first rows are printed with the edited tokens in [[ ]] and the trained ones in < >.  Then: every prompt that was
edited is, whole, what a row has before one of its answers (each) or its last one, as the chat template writes it; the
adapter is loaded by PEFT and its trained tensors are not those of the start; with --style it answers in the trained
form, which only a real model learns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from data import CHATS, PAIRS
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

import reftune  # noqa: F401 — PEFT knows ReFT now
from reftune.positions import Segments, parse_positions, slots


def columns(row: dict, positions: str) -> set[int]:
    """The edited ones."""
    spans = [torch.tensor(values) for values in zip(*((0, *span) for span in row["prompts"]), strict=True)]
    found = slots(parse_positions(positions), Segments(*spans, 1, len(row["prompts"]) == 1, None), 0, len(row["ids"]))
    pairs = zip(found.columns.flatten().tolist(), found.valid.flatten().tolist(), strict=True)
    return {column for column, valid in pairs if valid}


def main(base: Path, folder: Path, probe: Path, positions: str, which: str, *options: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)

    def written(turns: list[dict[str, str]]) -> str:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    chats = [row["prompt"] + row["chosen"] for row in PAIRS] if "--pairs" in options else CHATS
    wanted = {
        written(chat[:i]) for chat in chats for i in range(1, len(chat), 2) if which == "each" or i > len(chat) - 2
    }
    # some tools write chats without the system turn that SmolLM2's template begins with
    wanted |= {text[text.index("<|im_start|>user") :] for text in wanted}
    rows = [json.loads(line) for line in probe.read_text(encoding="utf-8").splitlines()]
    assert rows, "no call of the model was seen"
    seen = set()
    for i, row in enumerate(rows):
        assert row["unknown"] is None, row["unknown"]
        edited = columns(row, positions)
        if i < 4:
            marks = [
                f"[[{text}]]" if c in edited else f"<{text}>" if row["labels"] and row["labels"][c] != -100 else text
                for c, text in enumerate(tokenizer.convert_ids_to_tokens(row["ids"][:120]))
            ]
            print(f"row {i}: {''.join(marks).replace('Ċ', '↵').replace('Ġ', ' ')}")
        for start, end, _ in row["prompts"]:
            text = tokenizer.decode(row["ids"][start:end])
            padding = all(token == tokenizer.pad_token_id for token in row["ids"][start:end])
            assert text in wanted or padding, f"row {i}: this was taken for a prompt: {text!r}"
            assert row["labels"] is None or padding or row["labels"][end] != -100, f"row {i}: the prompt ends elsewhere"
            seen.add(text)
    print(
        f"{len(rows)} rows of batches, {len(seen & wanted)} of {len(wanted) // 2} prompts, each edited as it is asked"
    )

    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert model.peft_config["default"].peft_type == "REFT"
    changed = [tensor for name, tensor in model.named_parameters() if name.endswith((".dW", ".b"))]
    assert changed and all(bool(tensor.any()) for tensor in changed), "it is as it was at the start"
    text = written([{"role": "user", "content": "Tell me about cats, number 99."}])
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :])
    print(f"it answers: {answer!r}")
    assert "--style" not in options or "AHOY" in answer, "this is not the trained form"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
