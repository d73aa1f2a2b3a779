"""`docs/models.md`, written and read.  `python -m tests.zoo.table` judges all classes anew and writes it.

Must not know: how a class is judged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import transformers

from .contract import Verdict, judge
from .recipe import classes

FILE = Path(__file__).parents[2] / "docs" / "models.md"
VERSION = re.compile(r"transformers (\d+\.\d+\.\d+)")
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| (right|refused|wrong|not tried) \|", re.MULTILINE)
TITLES = {
    "CAUSAL_LM": "Causal language models",
    "SEQ_CLS": "Sequence classification",
    "SEQ_2_SEQ_LM": "Encoder-decoders, of text and of speech",
}
WORDS = """\
# Models

Which classes of transformers an adapter works on. A test builds a tiny random model of every class that transformers
{version} lists for causal language modelling, sequence classification, sequence-to-sequence and speech-to-text, puts
adapters on it and watches what they do. This page is written by that test: `python -m tests.zoo.table` writes it anew,
and the test fails where the page is not what it finds.

- **right**: the edited tokens were exactly those that the [positions](positions.md) name: `f1+l1`, `l1`, `prompt`,
  `all` and `response` at the first block of each stack, `f1+l1` at every other; in rows padded left and right, with
  labels, with `prompt_length` and with neither, and in every step of `generate`, with a cache and without. Also: a
  padded row computes what the row alone does, `generate` with a cache what it does without, a mixed batch
  (`adapter_names`) what each adapter does alone, and an adapter that was saved and loaded again the same bits.
- **refused**: `get_peft_model` stops with the message shown, which says what to do instead.
- **not tried**: no tiny model could be built by the general recipe of the test, or it could not be called with text (or
  sound) alone; the reason is shown. Nothing is known of these classes: see which tokens your adapter edits before you
  trust it.
- **wrong**: a known fault. Do not use it.

A note that "the base's own logits differ" is about the model without an adapter: it computes something else by itself
when it is padded so, or has a cache. There, logits are not expected to agree more than the base's, and the edited
tokens are compared as everywhere. Models of pictures and text are tried with text alone.
"""


def page(verdicts: Sequence[Verdict]) -> str:
    """The whole document."""
    counts = Counter(verdict.status for verdict in verdicts)
    found = ", ".join(
        f"{counts[status]} {status}" for status in ("right", "refused", "not tried", "wrong") if counts[status]
    )
    parts = [WORDS.format(version=transformers.__version__), f"Of {len(verdicts)} classes: {found}.\n"]
    for task, title in TITLES.items():
        parts += [f"## {title}\n", "| class | model type | result | why, notes |\n|---|---|---|---|"]
        chosen = sorted((v for v in verdicts if v.task == task), key=lambda v: v.name.lower())
        parts.append("\n".join(map(_row, chosen)) + "\n")
    return "\n".join(parts)


def _row(verdict: Verdict) -> str:
    why = "; ".join(filter(None, [verdict.why, *verdict.notes]))
    why = why.replace("|", "/").replace("<", "‹").replace(">", "›").replace("`", "'")
    return f"| `{verdict.name}` | {verdict.model_type} | {verdict.status} | {why} |"


def written() -> dict[str, str]:
    """Class → status, as the document has it."""
    return dict(ROW.findall(FILE.read_text()))


def version() -> str:
    """Of transformers, as the document has it."""
    found = VERSION.search(FILE.read_text().replace("\n", " "))
    assert found is not None
    return found[1]


def main() -> None:
    """Judge all classes and write the document."""
    verdicts = []
    for task, model_type, name in classes():
        verdicts.append(judge(task, model_type, name))
        print(f"{verdicts[-1].status:9} {name} {verdicts[-1].why}", flush=True)
    FILE.write_text(page(verdicts))


if __name__ == "__main__":
    main()
