"""Scores of answers and how sure they are: accuracy, Matthews and Pearson correlation, bootstrap intervals.

Must not know: tasks, models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["ACCURACY", "MATTHEWS", "MEAN", "PEARSON", "ROUGE_L", "WORD_F1", "Metric", "bootstrap"]

RESAMPLES = 2000


@dataclass(frozen=True)
class Metric:
    """`of(answers, references)`, two arrays of numbers, is a score: the higher the better."""

    name: str
    of: Callable[[np.ndarray, np.ndarray], float]


def accuracy(answers: np.ndarray, references: np.ndarray) -> float:
    """Share of answers that equal their reference."""
    return float(np.mean(answers == references))


def mean(answers: np.ndarray, references: np.ndarray) -> float:
    """Mean of the answers' own scores; the references are not looked at."""
    return float(np.mean(answers))


def matthews(answers: np.ndarray, references: np.ndarray) -> float:
    """Correlation of two classes 0 and 1 (Matthews 1975); an answer that is neither counts as the wrong one.

    0 where all answers or all references are of one class.
    """
    right = references.astype(bool)
    given = np.where((answers == 0) | (answers == 1), answers.astype(bool), ~right)
    return pearson(given.astype(float), right.astype(float))


def pearson(answers: np.ndarray, references: np.ndarray) -> float:
    """Linear correlation; 0 where either does not vary."""
    if np.ptp(answers) == 0 or np.ptp(references) == 0:
        return 0.0
    x, y = answers - answers.mean(), references - references.mean()
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 0 else 0.0


ACCURACY = Metric("accuracy", accuracy)
MEAN = Metric("mean", mean)
MATTHEWS = Metric("Matthews correlation", matthews)
PEARSON = Metric("Pearson correlation", pearson)
ROUGE_L = Metric("ROUGE-L", mean)
WORD_F1 = Metric("word F1", mean)


def bootstrap(metric: Metric, pairs: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % interval of a score: 2.5 and 97.5 percentiles over rows drawn again with replacement (Efron 1979).

    `pairs` is [rows, 2]: answer and reference of each row.  Where all answers are right, or all are wrong, drawing
    again says nothing, and the interval of a share is Wilson's (1927): up to z² / (rows + z²) away, z = 1.96.
    """
    score = metric.of(*pairs.T)
    if metric.of in (accuracy, mean) and score in (0.0, 1.0):
        rows, far = len(pairs), 1.96**2
        return (0.0, far / (rows + far)) if score == 0 else (rows / (rows + far), 1.0)
    rng = np.random.default_rng(seed)
    count = len(pairs)
    scores = [metric.of(*pairs[rng.integers(0, count, count)].T) for _ in range(resamples)]
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)
