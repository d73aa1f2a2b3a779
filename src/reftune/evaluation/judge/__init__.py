"""Answers to instructions, compared by a judge model: `pairs` of them, the `endpoint` that is asked, the `judge`.

Must not know: the command line, what made the answers.
"""

from .endpoint import Endpoint, EndpointError
from .judge import JudgeResult, judge_pairs, read_verdict
from .pairs import Pair, pair_up, read_answers, write_alpaca_eval

__all__ = [
    "Endpoint",
    "EndpointError",
    "JudgeResult",
    "Pair",
    "judge_pairs",
    "pair_up",
    "read_answers",
    "read_verdict",
    "write_alpaca_eval",
]
