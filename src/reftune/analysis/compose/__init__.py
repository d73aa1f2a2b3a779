"""Two abilities in one adapter, after the ReFT paper's appendix G.1: each trains a part of the rank of one LoReFT on
its own data, in one run, and both are switched on together at inference.

`sets` (data by name), `rules` (how an answer is scored), `compose` (the run and its four cases), `report`.

Must not know: the command line.
"""

from .compose import CASES, Ability, Composed, ability, answer_cases, check_two, hold_back, train_parts
from .report import results_of, told, write_composed
from .rules import RULES, rule
from .sets import SETS

__all__ = [
    "CASES",
    "RULES",
    "SETS",
    "Ability",
    "Composed",
    "ability",
    "answer_cases",
    "check_two",
    "hold_back",
    "results_of",
    "rule",
    "told",
    "train_parts",
    "write_composed",
]
