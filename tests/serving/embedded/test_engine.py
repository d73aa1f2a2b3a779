"""Mixed batches: each row has the tokens of transformers alone, whatever is beside it and however batches are cut."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from reftune.errors import ReftuneError
from reftune.serving import read_adapter
from reftune.serving.embedded.bank import IDLE
from reftune.serving.embedded.engine import Engine, EngineOptions, EngineStopped, QueueFull, UnknownAdapter
from reftune.serving.embedded.rows import Piece, Row, RowRequest
from reftune.serving.embedded.sampling import SamplingOptions
from tests.models import CAUSAL, tiny_model
from tests.serving.embedded.conftest import PATIENCE, Brake, brakes_of
from tests.serving.folders import KINDS, adapted, plain_answer, plain_models, text_model
from tests.training.text_models import word_tokenizer

TOKENIZER = word_tokenizer()
GREEDY = SamplingOptions(temperature=0)


class Asked(Row):
    """A row whose pieces are kept."""

    def __init__(self, prompt: list[int], count: int, sampling: SamplingOptions = GREEDY, **options: Any) -> None:
        self.pieces: list[Piece] = []
        self.done = threading.Event()
        super().__init__(RowRequest(prompt, count, sampling, **options), TOKENIZER, self.take, streams=True)

    def take(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if piece.finish is not None:
            self.done.set()

    def wait(self) -> list[int]:
        assert self.done.wait(PATIENCE)
        return self.tokens

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


@contextmanager
def engine_of(adapters: dict[str, Path], model: Any = None, **options: Any) -> Iterator[Engine]:
    engine = Engine(model or text_model(), options=EngineOptions(**options))
    engine.start()
    try:
        for name, folder in adapters.items():
            engine.load(name, read_adapter(folder)).result(PATIENCE)
        yield engine
    finally:
        for brake in brakes_of(engine.bank.base):
            brake.release()
        engine.stop(abort=True)


def prompts(count: int, *, longest: int = 14) -> list[list[int]]:
    """Of random lengths; the first two share a beginning."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    found = [torch.randint(7, 67, (length,), generator=generator).tolist() for length in lengths]
    return [found[0], [*found[0], 9], *found[2:]]


@pytest.fixture(scope="module")
def plain(adapters: dict[str, Path]) -> dict[str | None, Any]:
    return plain_models(adapters)


@pytest.fixture(scope="module")
def asked(adapters: dict[str, Path], plain: dict[str | None, Any]) -> list[tuple[str | None, list[int], list[int]]]:
    """(adapter, prompt, tokens of plain transformers): each adapter with four prompts, base requests between."""
    names: list[str | None] = [None, *adapters]
    chosen = [(names[i % len(names)], prompt) for i, prompt in enumerate(prompts(4 * len(names)))]
    return [(name, prompt, plain_answer(plain[name], prompt, 4 + i % 9)) for i, (name, prompt) in enumerate(chosen)]


def test_adapters_of_the_tests_change_answers(plain: dict[str | None, Any]) -> None:
    """Else the tests below could not fail."""
    for name, model in plain.items():
        answers = [(plain_answer(model, p, 8), plain_answer(plain[None], p, 8)) for p in prompts(4)]
        assert name is None or any(one != other for one, other in answers), name


@pytest.mark.parametrize(
    "options",
    [
        {"slice_steps": 1000},
        {"slice_steps": 3, "max_batch_size": 5},
        {"slice_steps": 1, "max_batch_size": 7},
        {"slice_steps": 2, "max_batch_tokens": 40},
        {"max_batch_size": 1},
    ],
    ids=["whole", "sliced", "every token", "few tokens", "one by one"],
)
def test_mixed_batches(adapters: dict[str, Path], asked: Any, options: dict[str, Any]) -> None:
    with engine_of(adapters, **options) as engine:
        rows = [Asked(prompt, len(tokens)) for _, prompt, tokens in asked]
        for row, (name, _, _) in zip(rows, asked, strict=True):
            engine.submit([row], name)
        for row, (name, prompt, tokens) in zip(rows, asked, strict=True):
            assert row.wait() == tokens, (name, prompt)


def test_batches_are_broken_off_for_those_who_wait(adapters: dict[str, Path]) -> None:
    """The control of the sliced runs above: a newcomer is answered while the long row runs."""
    with engine_of(adapters, slice_steps=4) as engine:
        brake = Brake(engine.bank.base)
        brake.hold()
        long = Asked([8, 9, 10], 400)
        engine.submit([long], "loreft")
        brake.wait_until_held()
        short = Asked([11, 12], 3)
        engine.submit([short], None)
        brake.release()
        short.wait()
        assert len(long.tokens) < 40 and long.finish is None
        long.cancel()
        long.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAUSAL)
def test_architectures(kind: str, tmp_path: Path) -> None:
    configs = {"f": KINDS["loreft"], "all": KINDS["direft-all"], "r": KINDS["noreft-response"]}
    folders, models = {}, {None: tiny_model(kind, layers=2)}
    for number, (name, config) in enumerate(configs.items()):
        models[name] = adapted(config, seed=number, model=tiny_model(kind, layers=2))
        models[name].save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    names: list[str | None] = [None, *configs]
    with engine_of(folders, tiny_model(kind, layers=2), slice_steps=3, max_batch_size=6) as engine:
        rows = [(names[i % 4], Asked(prompt, 3 + i % 5)) for i, prompt in enumerate(prompts(16))]
        for name, row in rows:
            engine.submit([row], name)
        for name, row in rows:
            assert row.wait() == plain_answer(models[name], list(row.request.prompt), row.request.max_tokens)


def test_a_seed_gives_the_same_tokens_whatever_is_beside_it(adapters: dict[str, Path]) -> None:
    sampling = SamplingOptions(temperature=1.5, top_p=0.95, presence_penalty=0.3, seed=11)
    found = []
    for others, options in [(0, {}), (5, {"slice_steps": 2}), (3, {"max_batch_size": 2, "slice_steps": 1})]:
        with engine_of(adapters, **options) as engine:
            rest = [Asked(prompt, 9, SamplingOptions(temperature=2.0)) for prompt in prompts(others + 2)[:others]]
            row = Asked([8, 9, 10, 11], 30, sampling)
            for other in rest:
                engine.submit([other], "steer")
            engine.submit([row], "loreft")
            found.append(row.wait())
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 5


def test_ends_stops_and_lengths(adapters: dict[str, Path], plain: dict[str | None, Any]) -> None:
    prompt, count = [8, 9, 10], 20
    tokens = plain_answer(plain["loreft"], prompt, count)
    words = [TOKENIZER.decode([token]) for token in tokens]
    with engine_of(adapters) as engine:
        end = tokens[6]
        rows = {
            "length": Asked(prompt, count),
            "end": Asked(prompt, count, ends=frozenset({end})),
            "stop": Asked(prompt, count, stops=(f"{words[4]} {words[5][:2]}",)),
        }
        for row in rows.values():
            engine.submit([row], "loreft")
        for row in rows.values():
            row.wait()
    assert rows["length"].finish == "length" and rows["length"].tokens == tokens
    cut = tokens.index(end)
    assert rows["end"].finish == "stop" and rows["end"].tokens == tokens[: cut + 1]
    assert rows["end"].text == TOKENIZER.decode(tokens[:cut], skip_special_tokens=True)
    whole = rows["length"].text
    assert rows["stop"].finish == "stop"
    assert rows["stop"].text == whole[: whole.index(rows["stop"].request.stops[0])]
    # what was shown before the stop was complete is no part of it
    assert len(rows["stop"].pieces) > 2


def test_cancelled_rows_make_room(adapters: dict[str, Path]) -> None:
    with engine_of(adapters, max_batch_size=1, max_queue=2) as engine:
        brake = Brake(engine.bank.base)
        brake.hold()
        running, queued, next_one = Asked([8], 500), Asked([9], 500), Asked([10], 2)
        for row in (running, queued, next_one):
            engine.submit([row], "loreft")
            if row is running:
                brake.wait_until_held()
        assert engine.waiting == 2 and engine.running == 1
        with pytest.raises(QueueFull):
            engine.submit([Asked([11], 1)])
        queued.cancel()
        running.cancel()
        brake.release()
        next_one.wait()
        assert running.finish == queued.finish == "cancelled"
        assert len(running.tokens) <= 1 and not queued.tokens
        # nobody needs the adapter any more
        engine.unload("loreft").result(PATIENCE)


def test_submit_queues_all_or_nothing(adapters: dict[str, Path]) -> None:
    with engine_of({}, max_queue=3) as engine:
        with pytest.raises(UnknownAdapter):
            engine.submit([Asked([8], 1)], "loreft")
        with pytest.raises(ReftuneError, match="at most 3"):
            engine.submit([Asked([8], 1) for _ in range(4)])
        rows = [Asked([8], 1) for _ in range(3)]
        engine.submit(rows)
        assert all(row.wait() for row in rows)
    with pytest.raises(EngineStopped):
        engine.submit([Asked([8], 1)])
    with pytest.raises(EngineStopped):
        engine.load("a", read_adapter(adapters["loreft"]))


def test_stop_finishes_what_runs_and_what_waits(adapters: dict[str, Path], plain: dict[str | None, Any]) -> None:
    engine = Engine(text_model(), options=EngineOptions(max_batch_size=2))
    engine.start()
    rows = [Asked(prompt, 6) for prompt in prompts(7)]
    engine.submit(rows)
    engine.stop()
    assert not engine.alive
    assert [row.tokens for row in rows] == [plain_answer(plain[None], list(row.request.prompt), 6) for row in rows]


def test_a_row_that_fails_is_not_the_end_of_others(adapters: dict[str, Path], plain: dict[str | None, Any]) -> None:
    with engine_of(adapters) as engine:
        generate = engine.bank.generate

        def spoilt(chosen: Any, **arguments: Any) -> Any:
            if any(entry is not None and entry.name == "steer" for entry in chosen):
                raise RuntimeError("no memory")
            return generate(chosen, **arguments)

        engine.bank.generate = spoilt  # type: ignore[method-assign]
        rows = [Asked([8, 9], 4), Asked([8, 9], 4), Asked([8, 9], 4)]
        for row, name in zip(rows, (None, "steer", "loreft"), strict=True):
            engine.submit([row], name)
        for row in rows:
            assert row.done.wait(PATIENCE)
        assert rows[1].finish == "error" and "no memory" in str(rows[1].pieces[-1].error)
        assert rows[0].tokens == plain_answer(plain[None], [8, 9], 4)
        assert rows[2].tokens == plain_answer(plain["loreft"], [8, 9], 4)
        assert engine.alive


# --- adapters that come and go ----------------------------------------------------------------------------------------


def test_unloading_waits_for_rows_that_need_the_adapter(
    adapters: dict[str, Path], plain: dict[str | None, Any]
) -> None:
    with engine_of({"a": adapters["loreft"], "b": adapters["steer"]}, slice_steps=1) as engine:
        brake = Brake(engine.bank.base)
        brake.hold()
        row = Asked([8, 9, 10], 12)
        engine.submit([row], "a")
        brake.wait_until_held()
        gone = engine.unload("a")
        for _ in range(3):
            brake.step()
        assert not gone.done() and len(engine.bank) == 1
        with pytest.raises(UnknownAdapter):
            engine.submit([Asked([8], 1)], "a")
        brake.release()
        gone.result(PATIENCE)
        assert row.wait() == plain_answer(plain["loreft"], [8, 9, 10], 12)


def test_a_reload_leaves_running_rows_the_old_adapter(adapters: dict[str, Path], plain: dict[str | None, Any]) -> None:
    with engine_of({"a": adapters["loreft"]}, slice_steps=2) as engine:
        brake = Brake(engine.bank.base)
        brake.hold()
        old, new = Asked([8, 9, 10], 40), Asked([8, 9, 10], 40)
        engine.submit([old], "a")
        brake.wait_until_held()
        steer = read_adapter(adapters["steer"])
        refused, exchanged = engine.load("a", steer), engine.load("a", steer, replace=True)
        brake.release()
        with pytest.raises(ReftuneError, match="loaded already"):
            refused.result(PATIENCE)
        exchanged.result(PATIENCE)
        assert old.finish is None
        engine.submit([new], "a")
        assert old.wait() == plain_answer(plain["loreft"], [8, 9, 10], 40)
        assert new.wait() == plain_answer(plain["steer"], [8, 9, 10], 40)
        assert len(engine.bank) == 1


def test_adapters_come_and_go_without_a_trace(adapters: dict[str, Path], plain: dict[str | None, Any]) -> None:
    with engine_of({}, max_adapters=2) as engine:
        base = engine.bank.base
        before = {name for name, _ in base.named_modules()}
        for name in ("loreft", "direft-all", "head", "loreft"):
            engine.load(name, read_adapter(adapters[name])).result(PATIENCE)
            row = Asked([8, 9], 5)
            engine.submit([row], name)
            assert row.wait() == plain_answer(plain[name], [8, 9], 5)
            engine.unload(name).result(PATIENCE)
            assert {name for name, _ in base.named_modules()} == before
            assert list(engine.bank.adapted.peft_config) == [IDLE]
        row = Asked([8, 9], 5)
        engine.submit([row])
        assert row.wait() == plain_answer(plain[None], [8, 9], 5)
        for name in ("loreft", "steer"):
            engine.load(name, read_adapter(adapters[name])).result(PATIENCE)
        with pytest.raises(ReftuneError, match="2 adapters are loaded"):
            engine.load("mlp", read_adapter(adapters["mlp"])).result(PATIENCE)


def test_the_first_adapter_goes_and_others_stay(adapters: dict[str, Path], plain: dict[str | None, Any]) -> None:
    names = ("loreft", "steer", "mlp")
    with engine_of({name: adapters[name] for name in names}) as engine:
        for gone, stays in (("loreft", "steer"), ("mlp", "steer")):
            engine.unload(gone).result(PATIENCE)
            for name in (stays, None):
                row = Asked([8, 9], 5)
                engine.submit([row], name)
                assert row.wait() == plain_answer(plain[name], [8, 9], 5)


def test_refused_adapters_change_nothing(
    adapters: dict[str, Path], plain: dict[str | None, Any], tmp_path: Path
) -> None:
    adapted(KINDS["loreft"], seed=1, model=text_model(hidden=64)).save_pretrained(tmp_path / "wide")
    adapted(KINDS["loreft"], seed=1, model=tiny_model("gpt2", layers=2)).save_pretrained(tmp_path / "gpt2")
    adapted(KINDS["loreft"], seed=1, model=tiny_model("llama", layers=3)).save_pretrained(tmp_path / "deep")
    adapted({"target_modules": ["c_proj"]}, seed=1, model=tiny_model("gpt2", layers=2)).save_pretrained(
        tmp_path / "modules"
    )
    for first in (False, True):
        with engine_of({"a": adapters["loreft"]} if first else {}) as engine:
            before = {name for name, _ in engine.bank.base.named_modules()}
            for name, part in [
                ("wide", "width 64"),
                ("gpt2", "another model"),
                ("deep", "layers 2"),
                ("modules", "does not fit"),
            ]:
                with pytest.raises(ReftuneError, match=part):
                    engine.load(name, read_adapter(tmp_path / name)).result(PATIENCE)
                assert {name for name, _ in engine.bank.base.named_modules()} == before
                row = Asked([8, 9, 10], 5)
                engine.submit([row], "a" if first else None)
                assert row.wait() == plain_answer(plain["loreft" if first else None], [8, 9, 10], 5)
