"""ReFT adapters in the lm-evaluation-harness: every score is that of one row alone, whose prompt is its context.

Must not know: how batches are told their prompts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from reftune import MissingExtraError, PositionError, ReftConfig, ReftuneError
from reftune.evaluation import lm_eval as ours
from reftune.evaluation.runner import evaluate_rows
from reftune.evaluation.tasks.base import Task
from reftune.generation import generate_texts
from tests.models import tiny_model
from tests.training.text_models import SPECIAL, WORDS, save_base, text_model, word_tokenizer

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from reftune.evaluation.lm_eval import ReftuneLM

POSITIONS = ("f2", "l1", "l3", "f1+l2", "prompt", "all", "response")
TASKS = Path(__file__).parent / "lm_eval_tasks"
BOS = 1
# float64: a batch and a row alone differ by rounding, some 1e-13; a wrong edit by more than 1e-3
CLOSE = 1e-9
FAR = 1e-3

Pair = tuple[str, str]
Scores = Sequence[tuple[float, bool]]


def words(first: int, count: int) -> str:
    return " ".join(WORDS[(first + i) % len(WORDS)] for i in range(count))


# of all lengths, so that every batch is padded
RAGGED = [(words(3 * i, 1 + i), " " + words(50 - i, 1 + i % 4)) for i in range(9)]
# one call for all four: one token each after the same context
CHOICES = [(words(7, 5), f" {word}") for word in WORDS[:4]]
# the same text with prompts of different lengths, in one call for all that the harness knows
SPLIT = [(words(20, n), " " + words(20 + n, 6 - n)) for n in (2, 3, 5, 1)]
# the token 0, with which the harness pads: here it is also text, at the end of what is read
PADS = [("w5" + " <pad>" * n, " <pad>" * m + " w7") for n, m in ((0, 0), (1, 0), (1, 1), (2, 0), (0, 1))]
CONTEXTS = [context for context, _ in (*RAGGED, *CHOICES[:1])]
PAIRS: list[Pair] = [*RAGGED, *CHOICES, *SPLIT, *PADS, RAGGED[4], ("", " w1 w2 w3")]


def adapted(kind: str = "llama", **fields: Any) -> Any:
    """A tiny model in float64 whose random adapter moves every score."""
    overrides = {"vocab_size": len(SPECIAL) + len(WORDS)}
    base = tiny_model(kind, layers=2, dtype=torch.float64, overrides=overrides)
    base.generation_config.eos_token_id = 2
    task = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    config = ReftConfig(**{"r": 2, "init": "random", "intervention": "direft", "task_type": task, **fields})
    torch.manual_seed(0)
    return peft.get_peft_model(base, config, autocast_adapter_dtype=False).eval()


def harness(model: Any, kind: Any = ReftuneLM, tokenizer: Any = None, **arguments: Any) -> Any:
    return kind(model, tokenizer=tokenizer or word_tokenizer(), **{"batch_size": 4, **arguments})


def instances(kind: Any, rows: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=row, idx=i) for i, row in enumerate(rows)]


def scores(lm: Any, pairs: Sequence[Pair]) -> Scores:
    return lm.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)


@torch.no_grad()
def alone(model: Any, prompt: list[int], response: list[int]) -> tuple[float, bool]:
    """Score of one row without padding; labels say where its prompt ends."""
    ids = torch.tensor([prompt + response])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    read = model(input_ids=ids, labels=labels).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    wanted = torch.tensor(response)
    return float(read.gather(1, wanted[:, None]).sum()), bool((read.argmax(-1) == wanted).all())


def expected(model: Any, pairs: Sequence[Pair], *, keep: int = 1000) -> Scores:
    """`keep`: tokens that are left of a row, cut from the left."""
    encode = word_tokenizer().encode
    tokens = [(encode(context) or [BOS], encode(continuation)) for context, continuation in pairs]
    return [alone(model, prompt[-(keep - len(response)) :], response) for prompt, response in tokens]


def assert_same(found: Scores, wanted: Scores) -> None:
    assert [flag for _, flag in found] == [flag for _, flag in wanted]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=CLOSE)


def furthest(found: Scores, wanted: Scores) -> float:
    return max(abs(a - b) for (a, _), (b, _) in zip(found, wanted, strict=True))


def greedy_pairs(model: Any) -> list[Pair]:
    """Continuations that the model would write itself."""
    texts = generate_texts(model, word_tokenizer(), CONTEXTS, max_new_tokens=2)
    return [(context, f" {text}") for context, text in zip(CONTEXTS, texts, strict=True) if text]


# --- log-likelihoods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", POSITIONS)
def test_scores_are_those_of_each_row_alone(positions: str) -> None:
    model = adapted(positions=positions)
    pairs = [*PAIRS, *greedy_pairs(model)]
    found, wanted = scores(harness(model), pairs), expected(model, pairs)
    assert_same(found, wanted)
    assert {flag for _, flag in wanted} == {True, False}
    with model.disable_adapter():
        assert furthest(found, expected(model, pairs)) > FAR, "the adapter does something"


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gemma3", "falcon", "bloom"])
def test_architectures(kind: str) -> None:
    model = adapted(kind, positions="f1+l2")
    assert_same(scores(harness(model), PAIRS), expected(model, PAIRS))


@pytest.mark.parametrize("arguments", [{"batch_size": 1}, {"batch_size": 64}, {"logits_cache": False}], ids=str)
def test_batches_do_not_matter(arguments: dict[str, Any]) -> None:
    model = adapted(positions="f1+l2")
    assert_same(scores(harness(model, **arguments), PAIRS), expected(model, PAIRS))


@pytest.mark.parametrize("size", ["auto", "auto:3"])
def test_batch_size_is_found(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapted(positions="f1+l2")
    lm = harness(model, batch_size=size, max_batch_size=4)
    assert_same(scores(lm, PAIRS), expected(model, PAIRS))
    assert "largest batch size: 4" in capsys.readouterr().out


@pytest.mark.parametrize("positions", ["f2", "f1+l2", "prompt", "response"])
def test_long_contexts_are_cut_from_the_left(positions: str) -> None:
    model = adapted(positions=positions)
    # cut to the same tokens, with responses of different lengths
    tails = [(f"{words(40, n)} {words(8, 12)}", " w1 w2") for n in (1, 2)]
    tails += [(f"{words(8, 10)} {words(18, 2)} w1", " w2"), (words(0, 4), " w9")]
    assert_same(scores(harness(model, max_length=9), tails), expected(model, tails, keep=10))


def test_a_beginning_token_is_of_the_prompt() -> None:
    model, tokenizer = adapted(positions="f1+l1"), word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    with_bos = expected(model, [(f"<s> {context}", continuation) for context, continuation in RAGGED])
    for given in (None, True):
        assert_same(scores(harness(model, tokenizer=tokenizer, add_bos_token=given), RAGGED), with_bos)
    without = scores(harness(model, tokenizer=tokenizer, add_bos_token=False), RAGGED)
    assert_same(without, expected(model, RAGGED))
    assert furthest(with_bos, without) > FAR


@pytest.mark.parametrize("positions", ["l1", "f1+l2", "prompt", "response"])
def test_without_prompts_the_scores_are_others(positions: str) -> None:
    model = adapted(positions=positions)
    assert furthest(scores(harness(model, HFLM), PAIRS), expected(model, PAIRS)) > FAR


def test_tokens_of_no_request_are_refused() -> None:
    lm = harness(adapted(positions="l1"))
    with pytest.raises(PositionError, match="no request"):
        lm._model_call(torch.tensor([[5, 6, 7]]))


def test_encoder_decoders() -> None:
    model, tokenizer = adapted("t5", positions="f1+l2"), word_tokenizer()
    found = scores(harness(model), RAGGED)
    for (context, continuation), (score, _) in zip(RAGGED, found, strict=True):
        ids, labels = (torch.tensor([tokenizer.encode(text)]) for text in (context, continuation))
        with torch.no_grad():
            read = model(input_ids=ids, labels=labels).logits.log_softmax(-1)
        assert score == pytest.approx(float(read.gather(2, labels[..., None]).sum()), abs=CLOSE)


# --- whole texts ------------------------------------------------------------------------------------------------------

TEXTS = [(words(i, 4 + 3 * i),) for i in range(4)]


@pytest.mark.parametrize("positions", ["f1", "l2", "all", "response"])
def test_of_a_whole_text_the_beginning_token_is_the_prompt(positions: str) -> None:
    model, tokenizer = adapted(positions=positions), word_tokenizer()
    found = harness(model).loglikelihood_rolling(instances("loglikelihood_rolling", TEXTS), disable_tqdm=True)
    assert found == pytest.approx([alone(model, [BOS], tokenizer.encode(text))[0] for (text,) in TEXTS], abs=CLOSE)


def test_a_text_of_several_pieces_needs_positions_all() -> None:
    texts = instances("loglikelihood_rolling", TEXTS)
    for positions in ("l1", "response"):
        with pytest.raises(PositionError, match="a text of 10 tokens is scored in pieces of 8"):
            harness(adapted(positions=positions), max_length=8).loglikelihood_rolling(texts)
    model = adapted(positions="all")
    found = harness(model, max_length=8).loglikelihood_rolling(texts, disable_tqdm=True)
    # all of a row is edited wherever its prompt ends, so that the harness alone is right
    assert found == pytest.approx(harness(model, HFLM, max_length=8).loglikelihood_rolling(texts), abs=CLOSE)


# --- generation -------------------------------------------------------------------------------------------------------


def outputs(lm: Any, contexts: Sequence[str], **kwargs: Any) -> list[str]:
    rows = [(context, {"until": [], "max_gen_toks": 8, **kwargs}) for context in contexts]
    return [text.strip() for text in lm.generate_until(instances("generate_until", rows), disable_tqdm=True)]


@pytest.mark.parametrize("positions", POSITIONS)
def test_generation_is_ours(positions: str) -> None:
    model, tokenizer = adapted(positions=positions), word_tokenizer()
    wanted = generate_texts(model, tokenizer, CONTEXTS, max_new_tokens=8)
    assert outputs(harness(model), CONTEXTS) == wanted
    stop = wanted[0].split()[3]
    assert outputs(harness(model), CONTEXTS, until=[stop]) == [text.split(stop)[0].strip() for text in wanted]
    with model.disable_adapter():
        assert generate_texts(model, tokenizer, CONTEXTS, max_new_tokens=8) != wanted


def test_generation_of_cut_contexts_and_found_batches() -> None:
    model, tokenizer = adapted(positions="f1+l2"), word_tokenizer()
    cut = [" ".join(context.split()[-5:]) for context in CONTEXTS]
    wanted = generate_texts(model, tokenizer, cut, max_new_tokens=8)
    assert outputs(harness(model, max_length=13, batch_size="auto", max_batch_size=4), CONTEXTS) == wanted


def test_chat_templates() -> None:
    model, tokenizer = adapted(positions="f2+l2"), word_tokenizer()
    lm = harness(model)
    chats = [[{"role": "user", "content": text}] for text in CONTEXTS]
    contexts = [lm.apply_chat_template(chat) for chat in chats]
    records = [{"messages": chat} for chat in chats]
    assert outputs(lm, contexts) == generate_texts(model, tokenizer, records, max_new_tokens=8)
    pairs = [(context, "w4 w5") for context in contexts]
    assert_same(scores(lm, pairs), expected(model, pairs))


# --- adapters without ReFT, and none ----------------------------------------------------------------------------------

LORA = peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")


def test_other_adapters_and_bases_score_as_in_the_harness() -> None:
    for model in (text_model(), peft.get_peft_model(text_model(), LORA).eval()):
        assert scores(harness(model), PAIRS) == scores(harness(model, HFLM), PAIRS)
        assert outputs(harness(model), CONTEXTS) == outputs(harness(model, HFLM), CONTEXTS)


# --- from folders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base, a ReFT and a LoRA adapter for it, and a ReFT adapter for the base with the LoRA adapter."""
    root = tmp_path_factory.mktemp("folders")
    base = str(save_base(root / "base"))
    found = {"base": base, **{name: str(root / name) for name in ("reft", "lora", "on_lora")}}
    torch.manual_seed(3)
    for name, below in (("reft", []), ("lora", []), ("on_lora", ["lora"])):
        model = loaded(found, *below)
        model.name_or_path = base
        config = LORA if name == "lora" else ReftConfig(r=2, positions="f1+l2", init="random", task_type="CAUSAL_LM")
        peft.get_peft_model(model, config).save_pretrained(found[name])
    return found


def loaded(folders: dict[str, str], *adapters: str) -> Any:
    """The base with adapters, one on the other, without the harness."""
    model = text_model()
    for name in adapters:
        model = peft.PeftModel.from_pretrained(model, folders[name])
    return model.eval()


def test_arguments_of_the_command_line_name_folders(folders: dict[str, str]) -> None:
    wanted = expected(loaded(folders, "reft"), PAIRS)
    for text in (f"pretrained={folders['base']},adapter={folders['reft']}", f"adapter={folders['reft']}"):
        lm = ReftuneLM.create_from_arg_string(text, {"device": "cpu", "batch_size": 4})
        # float32: sums of up to nine log-probabilities of about 5
        assert furthest(scores(lm, PAIRS), wanted) < 1e-4
    plain = ReftuneLM(folders["base"], device="cpu", batch_size=4)
    assert scores(plain, PAIRS) == scores(HFLM(folders["base"], device="cpu", batch_size=4), PAIRS)
    assert furthest(scores(plain, PAIRS), wanted) > FAR


def test_lora_from_a_folder_is_as_in_the_harness_and_carries_reft(folders: dict[str, str]) -> None:
    lora = HFLM(folders["base"], peft=folders["lora"], device="cpu", batch_size=4)
    found = ReftuneLM(folders["base"], adapter=folders["lora"], device="cpu", batch_size=4)
    assert scores(found, PAIRS) == scores(lora, PAIRS)
    both = ReftuneLM(folders["base"], peft=folders["lora"], adapter=folders["on_lora"], device="cpu", batch_size=4)
    assert furthest(scores(both, PAIRS), expected(loaded(folders, "lora", "on_lora"), PAIRS)) < 1e-4
    assert furthest(scores(both, PAIRS), scores(lora, PAIRS)) > FAR


def test_what_cannot_be_loaded(folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ReftuneError, match=r"no adapter in adapter=.*nowhere"):
        ReftuneLM(folders["base"], adapter=str(tmp_path / "nowhere"))
    with pytest.raises(ReftuneError, match="write adapter="):
        ReftuneLM(folders["reft"])
    with pytest.raises(ReftuneError, match="give pretrained="):
        ReftuneLM()
    with pytest.raises(ReftuneError, match="needs the name of its base"):
        ReftuneLM(text_model(), adapter=folders["reft"])
    wider = str(tmp_path / "wider")
    tiny_model("llama", layers=2, overrides={"hidden_size": 64, "vocab_size": 67}).save_pretrained(wider)
    word_tokenizer().save_pretrained(wider)
    with pytest.raises(ReftuneError, match="cannot be put on"):
        ReftuneLM(wider, adapter=folders["reft"], device="cpu")
    with pytest.raises(ReftuneError, match=r"cannot be put on.*tensors without a place"):
        ReftuneLM(folders["base"], peft=folders["lora"], adapter=folders["reft"], device="cpu")
    with pytest.raises(ReftuneError, match="only one of two may be without ReFT"):
        ReftuneLM(folders["base"], peft=folders["reft"], adapter=folders["lora"], device="cpu")


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    for call in (ours.register, lambda: ours.main([]), lambda: ours.ReftuneLM):
        with pytest.raises(MissingExtraError, match=r"reftune\[lm-eval\]"):
            call()


def test_the_command_runs_no_other_model() -> None:
    before = list(sys.argv)
    with pytest.raises(ReftuneError, match="--model hf is not for this command"):
        ours.main(["--model", "hf", "--tasks", "none"])
    assert sys.argv == before


# --- the command, end to end ------------------------------------------------------------------------------------------

WORD_TASK = Task(
    name="words",
    title="Words",
    sources={},
    prompt=lambda row: {"prompt": row["prompt"]},
    completion=lambda row: row["answer"],
    reference=lambda row: row["answer"],
    extract=lambda output: output.split("w1")[0].strip(),
    generation={"max_new_tokens": 3},
)
ROWS = 60


@pytest.fixture(scope="module")
def rows(folders: dict[str, str]) -> list[dict[str, Any]]:
    """Prompts; of every third the answer is what the adapter writes, so that some are right and some are wrong."""
    prompts = [words(7 * i, 1 + i % 7) for i in range(ROWS)]
    texts = generate_texts(loaded(folders, "reft"), word_tokenizer(), prompts, max_new_tokens=3)
    answers = [WORD_TASK.extract(text) if i % 3 == 0 else "w9 w9 w9" for i, text in enumerate(texts)]
    choices = [words(i, 4).split() for i in range(ROWS)]
    return [
        {"id": i, "prompt": prompt, "answer": answer, "choices": given, "right": i % 4}
        for i, (prompt, answer, given) in enumerate(zip(prompts, answers, choices, strict=True))
    ]


@pytest.mark.slow
def test_the_command_and_our_runner_agree(folders: dict[str, str], rows: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-m", "reftune.evaluation.lm_eval", "--model", "reftune", "--device", "cpu"]
    command += ["--model_args", f"pretrained={folders['base']},adapter={folders['reft']}", "--batch_size", "8"]
    command += ["--tasks", "reftune_words,reftune_choices", "--include_path", str(TASKS)]
    command += ["--output_path", "out", "--log_samples"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text(encoding="utf-8"))["results"]

    wanted = evaluate_rows(loaded(folders, "reft"), word_tokenizer(), WORD_TASK, rows)
    assert results["reftune_words"]["exact_match,none"] == wanted.score == pytest.approx(1 / 3, abs=0.05)
    samples = next((tmp_path / "out").rglob("samples_reftune_words_*.jsonl")).read_text(encoding="utf-8").splitlines()
    texts = {sample["doc"]["id"]: sample["filtered_resps"][0] for sample in map(json.loads, samples)}
    assert texts == {example["id"]: example["answer"] for example in wanted.examples}
    of_base = evaluate_rows(loaded(folders), word_tokenizer(), WORD_TASK, rows)
    assert of_base.score is not None and of_base.score < wanted.score

    pairs = [(row["prompt"], f" {word}") for row in rows for word in row["choices"]]
    found = torch.tensor([score for score, _ in expected(loaded(folders, "reft"), pairs)]).view(ROWS, 4)
    accuracy = (found.argmax(1) == torch.tensor([row["right"] for row in rows])).double().mean()
    assert results["reftune_choices"]["acc,none"] == pytest.approx(float(accuracy))
