"""`reftune judge`: a judge model compares answers with those of a reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import ReftuneError
from ..evaluation.data import sample
from ..evaluation.judge import Endpoint, EndpointError, JudgeResult, Pair, judge_pairs, pair_up, read_answers
from ..files import check_writable, write_json
from .output import JsonFlag, bar, consoles, emit, say

__all__ = ["judge"]

EXAMPLE = """Let a judge model compare answers with a reference.

Examples:

    reftune judge outputs.json --reference davinci003.json
    --endpoint https://api.openai.com/v1 --model gpt-4o

    reftune judge outputs.json --reference other.json --limit 100
    --endpoint http://127.0.0.1:8000/v1 --model judge

The files are lists of {"instruction", "output", "generator", "dataset"}, as
Alpaca-Eval reads them; JSON Lines are read too. Each pair is asked about
twice, with the answers in both orders. The same command goes on where it
stopped. The key is taken from the variable that --api-key-env names, and is
sent to the endpoint only.
"""
KEY_VARIABLE = "OPENAI_API_KEY"


def judge(
    outputs: Annotated[Path, typer.Argument(help="File of the answers to judge.")],
    reference: Annotated[Path, typer.Option(help="File of the answers to compare them with.")],
    endpoint: Annotated[str, typer.Option(help="Address of the OpenAI API, as https://host/v1.")],
    model: Annotated[str, typer.Option(help="Name of the judge there.")],
    api_key_env: Annotated[
        str | None, typer.Option(help=f"Variable that holds the key; {KEY_VARIABLE} if that is set.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="As many pairs, drawn by a fixed seed.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the judgements; by default beside the answers, ending in -judged.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at once.")] = 4,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Longest reply; more for judges that think first. 0 sets no limit.")
    ] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a reply.")] = 120.0,
    as_json: JsonFlag = False,
) -> None:
    results, progress = consoles(as_json)
    folder = output or outputs.with_name(f"{outputs.name.partition('.')[0]}-judged")
    check_writable(folder)
    answers, others = read_answers(outputs), read_answers(reference)
    pairs, alone = pair_up(answers, others)
    if limit is not None:
        pairs = sample(pairs, limit, seed=0)
    server = Endpoint(endpoint, model, _key(api_key_env), max_tokens=max_tokens or None, timeout=timeout)
    file = folder / "judgements.jsonl"
    with bar(progress, "judging", 2 * sum(pair.model != pair.reference for pair in pairs)) as done:
        result = _judged(pairs, server, file, concurrency, done)
    told = {
        **{"outputs": str(outputs), "generator": answers.name},
        **{"reference": str(reference), "reference_generator": others.name},
        **{"judge": model, "endpoint": server.shown},
        **{"without_reference": alone, **result.summary(), "judgements": str(file)},
    }
    write_json(folder / "summary.json", told)
    if result.n == result.identical < len(pairs):
        raise ReftuneError(
            f"no pair that was asked about has a score: of {len(pairs)}, {result.unreadable} got a reply that is no "
            f"verdict and {result.refused} were refused; the replies are in {file}"
        )
    if as_json:
        emit(told)
        return
    _show(results, result, answers.name, others.name, alone)
    say(results, f"judgements in {folder}", style="dim")


judge.__doc__ = EXAMPLE


def _judged(pairs: list[Pair], server: Endpoint, file: Path, concurrency: int, done: Any) -> JudgeResult:
    try:
        return judge_pairs(pairs, server, file=file, concurrency=concurrency, progress=done)
    except EndpointError as error:
        if not file.exists():
            raise
        raise EndpointError(f"{error}; what was judged is in {file}, and the same command goes on from there") from None


def _key(variable: str | None) -> str | None:
    """The key in a variable.  One that is named must be set; without a name the usual one is taken if it is."""
    key = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if variable and not key:
        raise ReftuneError(f"--api-key-env names {variable!r}, which is not set")
    return key or None


def _show(console: Console, result: JudgeResult, name: str, reference: str, alone: int) -> None:
    assert result.win_rate is not None
    say(
        console,
        f"{name} against {reference}: win rate {result.win_rate:.3f} ({result.low:.3f} to {result.high:.3f}), "
        f"{result.wins} won, {result.ties} tied, {result.losses} lost",
    )
    bias: Any = "not known" if result.position_bias is None else f"{result.position_bias:.3f}"
    say(console, f"the answer shown first is preferred {bias} of the time; orders disagree on {result.disagreements}")
    for count, what in (
        (result.unreadable, "not counted: a reply was no verdict"),
        (result.refused, "not counted: refused by the endpoint"),
        (alone, "not asked about: the reference has no such instruction"),
    ):
        if count:
            say(console, f"{count} {what}", style="yellow")
