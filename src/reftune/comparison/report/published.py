"""Numbers that the ReFT paper published, by the tasks that they are about.

Source of all: Wu et al. 2024, arXiv 2404.03592v3.  Scores are in points of 100, as printed.

Must not know: results of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["PUBLISHED", "SOURCE", "PublishedRow", "PublishedTable", "beside", "published_for"]

SOURCE = "Wu et al. 2024, ReFT: Representation Finetuning for Language Models, arXiv 2404.03592v3"


@dataclass(frozen=True)
class PublishedRow:
    """A method on a model."""

    model: str
    method: str
    average: float
    percent: float | None = None
    """Of the parameters that were trained."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """By task, as far as they are known here."""


@dataclass(frozen=True)
class PublishedTable:
    """One experiment of the paper."""

    title: str
    tasks: tuple[str, ...]
    """All that `average` is over."""
    measure: str
    rows: tuple[PublishedRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def of_average(self) -> str:
        return self.measure if len(self.tasks) == 1 else f"average of {len(self.tasks)}"


def _grid(
    methods: Iterable[str], table: Mapping[str, Iterable[tuple[float, float | None]]]
) -> tuple[PublishedRow, ...]:
    """Rows of `table`: by model the average and the percentage of each of `methods`."""
    names = tuple(methods)
    return tuple(
        PublishedRow(model, method, average, percent)
        for model, cells in table.items()
        for method, (average, percent) in zip(names, cells, strict=True)
    )


def _with_scores(
    rows: tuple[PublishedRow, ...], found: Mapping[tuple[str, str], Mapping[str, float]]
) -> tuple[PublishedRow, ...]:
    return tuple(
        PublishedRow(row.model, row.method, row.average, row.percent, found.get((row.model, row.method), {}))
        for row in rows
    )


COMMONSENSE_TASKS = (
    "boolq",
    "piqa",
    "social_i_qa",
    "hellaswag",
    "winogrande",
    "ARC-Easy",
    "ARC-Challenge",
    "openbookqa",
)
ARITHMETIC_TASKS = ("AQuA", "gsm8k", "mawps", "SVAMP")
GLUE_TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")

COMMONSENSE = PublishedTable(
    "Commonsense reasoning",
    COMMONSENSE_TASKS,
    "accuracy",
    _with_scores(
        _grid(
            ("LoRA", "DoRA", "DiReFT", "LoReFT"),
            {
                "LLaMA-7B": ((74.7, 0.826), (78.1, 0.838), (79.0, 0.031), (80.2, 0.031)),
                "LLaMA-13B": ((80.5, 0.670), (81.5, 0.681), (82.2, 0.025), (83.3, 0.025)),
                "Llama-2 7B": ((77.6, 0.826), (79.7, 0.838), (80.9, 0.031), (81.8, 0.031)),
                "Llama-3 8B": ((80.8, 0.700), (85.2, 0.710), (85.4, 0.026), (86.6, 0.026)),
            },
        ),
        {
            ("LLaMA-7B", "LoReFT"): dict(
                zip(COMMONSENSE_TASKS, (69.3, 84.4, 80.3, 93.1, 84.2, 83.2, 68.2, 78.9), strict=True)
            )
        },
    ),
    ("The published models were trained once on the training rows of all eight sets.",),
)

ARITHMETIC = PublishedTable(
    "Arithmetic reasoning",
    ARITHMETIC_TASKS,
    "accuracy",
    _with_scores(
        _grid(
            ("LoRA", "DiReFT", "LoReFT", "NoReFT", "h + Rᵀ(Wh + b)", "ConsReFT: h + Rᵀ(b − Rh)", "LobiReFT: h + Rᵀb"),
            {
                model: tuple((average, None) for average in averages)
                for model, averages in {
                    "LLaMA-7B": (46.9, 40.6, 42.6, 42.4, 42.9, 37.1, 31.3),
                    "LLaMA-13B": (51.1, 48.0, 49.6, 49.0, 49.3, 47.4, 39.5),
                }.items()
            },
        ),
        {
            ("LLaMA-7B", "LoReFT"): dict(zip(ARITHMETIC_TASKS, (21.4, 26.0, 76.2, 46.8), strict=True)),
            ("LLaMA-13B", "LoReFT"): dict(zip(ARITHMETIC_TASKS, (23.6, 38.1, 82.4, 54.2), strict=True)),
        },
    ),
    ("In the paper LoReFT is behind LoRA here. The last four methods are its ablations.",),
)

INSTRUCTION = PublishedTable(
    "Instruction following",
    ("alpaca_eval",),
    "Alpaca-Eval v1.0 win rate against text-davinci-003",
    tuple(
        PublishedRow("Llama-2 7B", method, rate)
        for method, rate in {
            "full finetuning": 80.93,
            "LoRA": 81.48,
            "RED": 81.69,
            "DiReFT": 84.85,
            "LoReFT": 85.60,
            "LoReFT, half the rank": 84.12,
            "LoReFT, 1,000 examples": 81.91,
        }.items()
    ),
    (
        "Win rates of different judges are not the same measure.",
        "LoReFT on 1,000 examples: 262K trained parameters, 18 minutes on one A100 40G.",
    ),
)

GLUE = PublishedTable(
    "GLUE",
    GLUE_TASKS,
    "accuracy; CoLA Matthews, STS-B Pearson correlation",
    tuple(
        PublishedRow(model, method, average)
        for model, averages in {
            "RoBERTa-base": (85.6, 84.7, 84.3, 83.2, 84.2),
            "RoBERTa-large": (88.6, 88.1, 88.0, 87.4, 88.2),
        }.items()
        for method, average in zip(("full finetuning", "LoRA", "RED", "DiReFT", "LoReFT"), averages, strict=True)
    ),
    (
        "Published scores are of a classification head on an encoder, on half of the validation set, at the epoch that "
        "was best on the other half.",
        "Published spread over seeds on RoBERTa-base: CoLA 2.6, RTE 2.8, MRPC 2.6.",
    ),
)

PUBLISHED: tuple[PublishedTable, ...] = (COMMONSENSE, ARITHMETIC, INSTRUCTION, GLUE)


def published_for(tasks: Iterable[str]) -> list[tuple[PublishedTable, list[str]]]:
    """Tables with a number of any of the tasks, or an average over tasks that are all there.

    Each comes with those of its tasks that are there, in its own order.
    """
    given = set(tasks)
    found = [(table, [name for name in table.tasks if name in given]) for table in PUBLISHED]
    return [(table, shared) for table, shared in found if any(beside(row, table, shared) for row in table.rows)]


def beside(row: PublishedRow, table: PublishedTable, measured: list[str]) -> bool:
    """Whether a row has a number that one of the measured can stand beside."""
    return bool(measured) and (len(measured) == len(table.tasks) or any(name in row.scores for name in measured))
