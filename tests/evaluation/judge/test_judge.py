"""The judge: verdicts in replies, both orders, scores, and runs that go on where they stopped."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reftune.evaluation.judge import JudgeResult, judge_pairs, read_verdict
from reftune.evaluation.judge.endpoint import Endpoint, EndpointError, Reply
from reftune.evaluation.judge.pairs import Pair
from reftune.evaluation.scores import MEAN, bootstrap
from tests.evaluation.judge.judge_server import Answered, Asked, JudgeServer, prefers_longer, serving

PAIRS = [
    Pair("Greet.", "Good morning to you.", "Hi."),
    Pair("Count.", "1", "1, 2, 3, 4"),
    Pair("Name a {fish}.", "a cod", "a ray"),
    Pair("Say it.", "It.", "It."),
    Pair("Describe rain.", "Water that falls from clouds.", "Wet."),
]


def judged(server: JudgeServer, pairs: list[Pair] = PAIRS, **options: Any) -> JudgeResult:
    settings = {key: options.pop(key) for key in ("model", "max_tokens") if key in options}
    endpoint = Endpoint(server.url, **{"model": "judge", "first_wait": 0.01, "retries": 2, **settings})
    return judge_pairs(pairs, endpoint, **options)


def scores(result: JudgeResult) -> list[float | None]:
    return [row["score"] for row in result.rows]


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1", "1"),
        (" 2\n", "2"),
        ("tie", "tie"),
        ("Tie.", "tie"),
        ("TIE", "tie"),
        ("**1**", "1"),
        ("`2`", "2"),
        ("[[2]]", "2"),
        ('"tie".', "tie"),
        ("1.", "1"),
        ("Answer 1", "1"),
        ("answer-2", "2"),
        ("Answer: 2", "2"),
        ("Verdict: tie", "tie"),
        ("My final verdict is 1.", "1"),
        ("Better answer: 2", "2"),
        ("Answer 1 is better.", "1"),
        ("Response 2 is the best one", "2"),
        ("It's a tie!", "tie"),
        ("It is a tie", "tie"),
        ('{"verdict": 2}', "2"),
        ('{"winner": "answer 1"}', "1"),
        ("1\n\nThe first answer says more than the second.", "1"),
        ("Both are short.\nThe first is right.\n\nVerdict: 1", "1"),
        ("Answer 1:\nshort\nAnswer 2\nlong\n\n2", "2"),
        ("2\n2\n2", "2"),
        ("<think>Answer 1? No.\n1\n</think>\n\n2", "2"),
        ("so it is\n1\n</think>2", "2"),
        # not a verdict, or not one
        ("", None),
        ("   \n", None),
        ("3", None),
        ("0", None),
        ("12", None),
        ("1.5", None),
        ("-1", None),
        ("1/2", None),
        ("1 or 2", None),
        ("1\n2", None),
        ("1\ntie", None),
        ("neither", None),
        ("Both", None),
        ("one", None),
        ("necktie", None),
        ("2 answers were given, and the first is better.", None),
        ("1 is not better", None),
        ("Answer 1 is better than answer 2", None),
        ("1. The first answer is wrong.", None),
        ("Answer 1:\nThis answer is", None),
        ("Answer 1\nThis answer is", None),
        ("<think>1\n", None),
        ("I cannot judge this.", None),
    ],
)
def test_verdicts(text: str, verdict: str | None) -> None:
    assert read_verdict(Reply(text, "stop")) == verdict


def test_the_last_line_of_a_reply_that_was_cut_off_does_not_count() -> None:
    assert read_verdict(Reply("1", "length")) is None
    assert read_verdict(Reply("It seems that\n1", "length")) is None
    assert read_verdict(Reply("2\nThe second is", "length")) == "2"
    assert read_verdict(Reply("Answer 2\nThe second is", "length")) is None


# --- orders and scores ------------------------------------------------------------------------------------------------


def test_every_pair_is_asked_about_in_both_orders() -> None:
    with serving(prefers_longer) as server:
        result = judged(server)
    expected = [
        texts
        for p in PAIRS
        if p.model != p.reference
        for texts in (
            (p.instruction, p.model, p.reference),
            (p.instruction, p.reference, p.model),
        )
    ]
    assert sorted(asked.texts for asked in server.asked) == sorted(expected)
    assert scores(result) == [1.0, 0.0, 0.5, 0.5, 1.0]
    assert (result.n, result.wins, result.ties, result.losses, result.identical) == (5, 2, 2, 1, 1)
    assert (result.unreadable, result.refused, result.disagreements) == (0, 0, 0)
    assert (result.asked, result.kept) == (8, 0)
    assert result.win_rate == pytest.approx(0.6)
    assert result.position_bias == 0.5, "it prefers what is longer, wherever it stands"
    assert (result.low, result.high) == bootstrap(MEAN, np.array([(s, 1.0) for s in (1, 0, 0.5, 0.5, 1)]))


@pytest.mark.parametrize(("says", "bias"), [("1", 1.0), ("2", 0.0), ("tie", None)])
def test_a_judge_that_looks_at_the_position_only_makes_ties(says: str, bias: float | None) -> None:
    with serving(lambda asked: says) as server:
        result = judged(server)
    assert scores(result) == [0.5] * 5
    assert (result.win_rate, result.low, result.high) == (0.5, 0.5, 0.5)
    assert result.position_bias == bias
    assert result.disagreements == (0 if says == "tie" else 4)


@pytest.mark.parametrize(
    ("model_first", "reference_first", "score"),
    [
        ("1", "2", 1.0),
        ("2", "1", 0.0),
        ("1", "1", 0.5),
        ("2", "2", 0.5),
        ("tie", "tie", 0.5),
        ("1", "tie", 0.5),
        ("tie", "2", 0.5),
        ("2", "tie", 0.5),
        ("tie", "1", 0.5),
        ("1", "?", None),
        ("?", "tie", None),
    ],
)
def test_score_of_a_row(model_first: str, reference_first: str, score: float | None) -> None:
    with serving(lambda asked: model_first if asked.texts[1] == "mine" else reference_first) as server:
        result = judged(server, [Pair("Do.", "mine", "theirs")])
    assert scores(result) == [score]
    assert result.win_rate == score
    assert result.unreadable == (score is None)


def test_replies_that_are_no_verdict_are_counted_and_leave_the_score_alone() -> None:
    def answer(asked: Asked) -> str:
        return "I like both" if asked.texts[0] == "Greet." else prefers_longer(asked)

    with serving(answer) as server:
        result = judged(server)
    assert (result.n, result.unreadable) == (4, 1)
    assert result.win_rate == pytest.approx((0 + 0.5 + 0.5 + 1) / 4)


def test_equal_answers_need_no_judge() -> None:
    with serving(prefers_longer) as server:
        result = judged(server, [Pair("Say it.", "It.", "It.")])
    assert (server.asked, result.win_rate, result.position_bias) == ([], 0.5, None)


def test_progress_counts_all_replies() -> None:
    told: list[int] = []
    with serving(prefers_longer) as server:
        judged(server, progress=told.append)
    assert told == list(range(9))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_as_many_requests_at_once_as_allowed(concurrency: int) -> None:
    lock, now, most = threading.Lock(), [0], [0]
    together = threading.Barrier(concurrency)

    def answer(asked: Asked) -> str:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(10)
        with lock:
            now[0] -= 1
        return "1"

    pairs = [Pair(f"Do {i}.", "a", "b") for i in range(3)]  # six questions: the barrier is met in full
    with serving(answer) as server:
        judged(server, pairs, concurrency=concurrency)
    assert most[0] == concurrency


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_trouble_on_the_way_changes_no_score() -> None:
    troubles = [Answered(429), Answered(503), Answered(hang_up=True), Answered(body="garbage")]
    seen: list[Answered] = []

    def answer(asked: Asked) -> str | Answered:
        if asked.number == 0:
            seen.append(troubles[len(seen) % len(troubles)])
            return seen[-1]
        return prefers_longer(asked)

    with serving(prefers_longer) as server:
        smooth = judged(server)
    with serving(answer) as server:
        rough = judged(server)
    assert len(server.asked) == 16 and len(seen) == 8
    assert rough == smooth


def test_a_question_that_is_refused_is_counted_and_asked_again_next_time(tmp_path: Path) -> None:
    file = tmp_path / "judgements.jsonl"

    def answer(asked: Asked) -> str | Answered:
        return Answered(400, "too long") if asked.texts[1].startswith("Good") else prefers_longer(asked)

    with serving(answer) as server:
        result = judged(server, file=file, concurrency=1)
        assert scores(result) == [None, 0.0, 0.5, 0.5, 1.0]
        assert (result.n, result.refused, result.unreadable) == (4, 1, 0)
        server.answer = prefers_longer
        again = judged(server, file=file)
    assert (again.asked, again.kept, again.refused) == (1, 7, 0)
    assert scores(again) == [1.0, 0.0, 0.5, 0.5, 1.0]


def test_an_endpoint_that_refuses_everything_is_not_asked_for_ever() -> None:
    pairs = [Pair(f"Do {i}.", "a", "b") for i in range(50)]
    with serving(lambda asked: Answered(400, '{"error": {"message": "unknown field max_tokens"}}')) as server:
        with pytest.raises(EndpointError, match="unknown field max_tokens"):
            judged(server, pairs)
        assert len(server.asked) < 20
        with pytest.raises(EndpointError, match="unknown field max_tokens"):
            judged(server, pairs[:1])


@pytest.mark.parametrize("status", [401, 404])
def test_an_endpoint_that_does_not_work_stops_the_run(status: int, tmp_path: Path) -> None:
    pairs = [Pair(f"Do {i}.", "a", "b") for i in range(50)]
    with serving(lambda asked: Answered(status)) as server:
        with pytest.raises(EndpointError, match=str(status)):
            judged(server, pairs, file=tmp_path / "judgements.jsonl")
        assert len(server.asked) < 20
    assert list(tmp_path.iterdir()) == []


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file = tmp_path / "judgements.jsonl"

    def dies(asked: Asked) -> str | Answered:
        return prefers_longer(asked) if len(server.asked) <= 3 else Answered(401)

    with serving(dies) as server:
        with pytest.raises(EndpointError):
            judged(server, file=file, concurrency=1)
        assert len(file.read_text().splitlines()) == 3
        done = [asked.texts for asked in server.asked[:3]]
        with file.open("a") as half:
            half.write('{"key": "half of a li')
        server.answer = prefers_longer
        server.asked.clear()
        result = judged(server, file=file)
        assert (result.kept, result.asked, len(server.asked)) == (3, 5, 5)
        assert not set(done) & {asked.texts for asked in server.asked}
        assert scores(result) == [1.0, 0.0, 0.5, 0.5, 1.0]
        # every line is whole, and a third run has nothing left to ask
        assert len([json.loads(line) for line in file.read_text().splitlines()]) == 8
        server.asked.clear()
        again = judged(server, file=file)
        assert server.asked == [] and (again.kept, again.asked) == (8, 0)
        assert (again.rows, again.win_rate) == (result.rows, result.win_rate)


def test_judgements_are_kept_by_content_not_by_place(tmp_path: Path) -> None:
    file = tmp_path / "judgements.jsonl"
    with serving(prefers_longer) as server:
        judged(server, file=file)
        assert judged(server, PAIRS[::-1], file=file).asked == 0
        changed = [Pair("Greet.", "Hm.", "Hi."), *PAIRS[1:]]
        result = judged(server, changed, file=file)
        assert (result.asked, result.kept) == (2, 6)
        assert scores(result)[0] == 0.5
        assert judged(server, file=file, model="another judge").asked == 8
        assert judged(server, file=file, max_tokens=200).asked == 8
        assert judged(server, file=file).asked == 0
    with serving(lambda asked: "tie") as elsewhere:
        assert judged(elsewhere, file=file).asked == 8


def test_swapped_files_swap_the_score(tmp_path: Path) -> None:
    """The same texts with the roles changed are other questions, although the judge sees the same prompts."""
    file = tmp_path / "judgements.jsonl"
    with serving(prefers_longer) as server:
        forth = judged(server, file=file)
        back = judged(server, [Pair(p.instruction, p.reference, p.model) for p in PAIRS], file=file)
    assert [1 - s for s in scores(forth) if s is not None] == scores(back)


def test_lines_are_written_as_they_come_and_say_what_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "judgements.jsonl"
    seen: list[int] = []

    def lines() -> int:
        return len(file.read_text().splitlines()) if file.exists() else 0

    def answer(asked: Asked) -> str:
        # the next question may be on its way before the line of the one before is written
        deadline = time.monotonic() + 30
        while lines() < len(seen) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(lines())
        return "**1**" if asked.texts[1] == "mine" else "hm \ud800"

    with serving(answer) as server:
        judged(server, [Pair("Do.", "mine", "theirs")], file=file, concurrency=1)
    assert seen == [0, 1]
    first, second = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    assert {**first, "key": ""} == {
        "key": "",
        "judge": "judge",
        "instruction": "Do.",
        "first": "model",
        "winner": "model",
        "reply": "**1**",
        "finish": "stop",
    }
    assert (second["first"], second["winner"], second["reply"]) == ("reference", None, "hm ?")
    assert first["key"] != second["key"]
