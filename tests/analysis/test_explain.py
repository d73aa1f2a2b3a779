"""What an adapter does, against plain hooks in float64 that know the formulas and the columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from reftune import ReftConfig
from reftune.analysis.explain import (
    Lens,
    Probe,
    Switch,
    along_layers,
    basis_rows,
    edit_rows,
    edit_sizes,
    next_tokens,
    patch,
    save_pruned,
    smallest_set,
    switched_off,
)
from reftune.analysis.explain.replay import Replay
from reftune.analysis.explain.switches import EVERY, NONE
from reftune.errors import ReftuneError
from tests.models import CAUSAL, tiny_model
from tests.training.text_models import SPECIAL, WORDS, text_model, word_tokenizer

DEPTH, EDITED, RANK = 4, (1, 2, 3), 2
PROMPT, ANSWER = "w1 w2 w3 w4 w5", " w9 w8 w7"
# f1+l2 of five tokens
SLOTS = {0: 0, 3: 1, 4: 1}
"""Column → number of its Φ with tie="group"."""

On = Callable[[int, int, int], bool]


def everything(layer: int, column: int, row: int) -> bool:
    return True


def adapted(dtype: torch.dtype = torch.float64, **fields: Any) -> Any:
    options = {"r": RANK, "layers": list(EDITED), "positions": "f1+l2", "tie": "group", "init": "random", **fields}
    model = get_peft_model(text_model(layers=DEPTH, dtype=dtype), ReftConfig(task_type="CAUSAL_LM", **options))
    return model.to(dtype).eval()


@pytest.fixture
def probe() -> Probe:
    return Probe(adapted(), word_tokenizer())


def parameters(probe: Probe, layer: int, number: int) -> dict[str, Tensor]:
    name = f"layers.{layer}.hidden_edit.intervention_{number}.default."
    return {key.rpartition(".")[2]: p.detach() for key, p in probe.model.named_parameters() if name in key}


def oracle(
    probe: Probe, ids: tuple[int, ...], on: On = everything, slots: dict[int, int] = SLOTS
) -> tuple[Tensor, list[Tensor], dict[Any, Tensor]]:
    """Logits [T, V], states behind the blocks, and edits by (layer, column), of the bare model with hooks."""
    model = text_model(layers=DEPTH, dtype=torch.float64)
    states: list[Tensor] = []
    edits: dict[Any, Tensor] = {}

    def hook(layer: int, out: Any) -> Any:
        h = (out[0] if isinstance(out, tuple) else out).clone()
        for column, number in slots.items() if layer in EDITED else ():
            p = parameters(probe, layer, number)
            # orthonormal rows by Gram and Schmidt
            rows: list[Tensor] = []
            for raw in p["R"]:
                raw = raw - sum(((raw @ row) * row for row in rows), torch.zeros_like(raw))
                rows.append(raw / raw.norm())
            R = torch.stack(rows)
            coefficients = p["W"] @ h[0, column] + p["b"] - R @ h[0, column]
            keep = torch.tensor([float(on(layer, column, row)) for row in range(RANK)], dtype=torch.float64)
            edits[layer, column] = R.T @ (coefficients * keep)
            h[0, column] += edits[layer, column]
        states.append(h[0])
        return (h, *out[1:]) if isinstance(out, tuple) else h

    for i, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda _, args, out, i=i: hook(i, out))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return logits, states, edits


def likelihood(probe: Probe, text: Any, on: On = everything, slots: dict[int, int] = SLOTS) -> float:
    logits = oracle(probe, text.ids, on, slots)[0].log_softmax(-1)
    return sum(float(logits[i - 1, text.ids[i]]) for i in range(text.prompt_length, len(text.ids)))


def divergence(p: Tensor, q: Tensor) -> float:
    return float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())


def close(a: float, b: float) -> bool:
    return a == pytest.approx(b, rel=1e-9, abs=1e-9)


def test_what_is_switched_off_is_off(probe: Probe) -> None:
    text = probe.text(PROMPT, answer=ANSWER)
    assert text.prompt_length == 5 and text.answer_text.startswith("w9 w8 w7")
    cases: list[tuple[Switch, On]] = [
        (EVERY, everything),
        (NONE, lambda layer, column, row: False),
        (Switch(sites=frozenset({"resid_post.2"})), lambda layer, column, row: layer == 2),
        (Switch(columns=frozenset({0, 4})), lambda layer, column, row: column != 3),
        # the suffix has the second Φ
        (
            Switch(without=("resid_post.3", 1, 0)),
            lambda layer, column, row: not (layer == 3 and column in (3, 4) and row == 0),
        ),
        (
            Switch(sites=frozenset({"resid_post.1"}), columns=frozenset({3})),
            lambda layer, column, row: (layer, column) == (1, 3),
        ),
    ]
    # together in one batch
    found = probe.log_likelihoods(text, [switch for switch, _ in cases])
    wanted = [likelihood(probe, text, on) for _, on in cases]
    assert len({round(value, 6) for value in wanted}) == len(cases)
    assert all(map(close, found, wanted)), (found, wanted)
    # and nothing of it stays behind
    with torch.no_grad():
        after = probe.model(torch.tensor([text.ids]), prompt_length=torch.tensor([5])).logits[0]
    assert torch.allclose(after, oracle(probe, text.ids)[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("positions", "slots"),
    [
        ("l2+g2", {3: 0, 4: 0, 5: 1, 6: 1}),
        # terms that look at the tokens: w4 and w8 are the fourth and the seventh
        ("id({w4},{w8})+l1", {4: 0, 3: 1, 6: 1}),
        # turns of three and of two tokens, of which the first call does not begin with the first
        ("turn({w4}):f1+l1-p[:1]", {3: 0, 2: 1, 4: 1}),
    ],
)
def test_calls_begin_where_a_switch_differs(positions: str, slots: dict[int, int]) -> None:
    ids = dict(zip(("w4", "w8"), word_tokenizer()(["w4 w8"])["input_ids"][0], strict=True))
    probe = Probe(adapted(positions=positions.format(**ids)), word_tokenizer())
    text = probe.text(PROMPT, answer=ANSWER)
    assert [(c, n) for c, n in probe.edits(probe.sites[0], text)] == sorted(slots.items())
    cases: list[tuple[Switch, On]] = [
        (Switch(sites=frozenset({"resid_post.3"})), lambda layer, column, row: layer == 3),
        (Switch(sites=frozenset({"resid_post.1", "resid_post.2"})), lambda layer, column, row: layer != 3),
        (Switch(columns=frozenset({3, 4})), lambda layer, column, row: column in (3, 4)),
        (
            Switch(without=("resid_post.2", 1, 1)),
            lambda layer, column, row: not (layer == 2 and slots[column] == 1 and row == 1),
        ),
    ]
    replay = Replay(probe, text)
    assert replay.is_exact and sum(rows for rows, _, _ in calls(replay, [switch for switch, _ in cases])) == len(cases)
    # no block below the first that differs, and no token before the first
    first = min(slots)
    assert calls(replay, [cases[0][0]]) == [(1, 3, first)] and calls(replay, [EVERY, NONE]) == []
    found = probe.log_likelihoods(text, [switch for switch, _ in cases])
    wanted = [likelihood(probe, text, on, slots) for _, on in cases]
    assert all(map(close, found, wanted)), (found, wanted)


def calls(replay: Replay, switches: list[Switch]) -> list[tuple[int, int, int]]:
    """Rows, first block and first token of each call that these take."""
    found, own = [], replay._call

    def call(chosen: Any, layer: int, column: int, more: Any) -> Tensor:
        found.append((len(chosen), layer, column))
        return own(chosen, layer, column, more)

    replay.__dict__["_call"] = call
    replay.each(switches, lambda logits: None)
    del replay.__dict__["_call"]
    return found


def test_tables_of_what_matters(probe: Probe) -> None:
    text = probe.text(PROMPT, answer=ANSWER)
    found = switched_off(probe, [text, text])
    logits = oracle(probe, text.ids)[0]
    full, base = likelihood(probe, text), likelihood(probe, text, lambda *_: False)
    assert close(found["adapter"], 2 * full) and close(found["base"], 2 * base)
    for row in found["layers"]:
        assert close(
            row["loss"], 2 * (full - likelihood(probe, text, lambda layer, *_, off=row["layer"]: layer != off))
        )
        other = oracle(probe, text.ids, lambda layer, *_, off=row["layer"]: layer != off)[0]
        apart = sum(divergence(logits[i], other[i]) for i in range(4, len(text.ids) - 1))
        assert close(row["kl"], 2 * apart) and apart > 1e-6
    columns = {"f1": 0, "l2": 3, "l1": 4}
    assert {row["position"] for row in found["positions"]} == set(columns)
    for row in found["positions"]:
        left = likelihood(probe, text, lambda layer, column, _, off=columns[row["position"]]: column != off)
        assert close(row["loss"], 2 * (full - left))
    assert len(found["rows"]) == len(EDITED) * 2 * RANK
    by = "loss" if full > base else "kl"
    for kind in ("layers", "positions", "rows"):
        losses = [row[by] for row in found[kind]]
        assert losses == sorted(losses, reverse=True)
    patched = patch(probe, text)
    assert patched["columns"] == list(SLOTS)
    for i, layer in enumerate(EDITED):
        for j, column in enumerate(SLOTS):
            alone = likelihood(probe, text, lambda at, where, _, it=(layer, column): (at, where) == it)
            assert close(patched["gain"][i][j], alone - base)


def test_sizes_coordinates_and_lens(probe: Probe) -> None:
    texts = [probe.text(PROMPT, answer=ANSWER), probe.text("w11 w12 w13 w14 w15", answer=" w1")]
    text = texts[0]
    _, states, edits = oracle(probe, text.ids)
    model: Any = text_model(layers=DEPTH, dtype=torch.float64)
    lens = Lens(probe, text)
    lines = edit_rows(probe, text, lens, count=3)
    assert [(line["layer"], line["column"]) for line in lines] == [(i, c) for i in EDITED for c in SLOTS]
    for line in lines:
        edit, after = edits[line["layer"], line["column"]], states[line["layer"]][line["column"]]
        assert close(line["ratio"], float(edit.norm() / (after - edit).norm()))
        with torch.no_grad():
            wanted = model.lm_head(model.model.norm(edit))
        for part, sign in (("promotes", 1), ("suppresses", -1)):
            best = (sign * wanted).topk(3)
            assert [token["id"] for token in line[part]] == best.indices.tolist()
            assert torch.tensor([t["logit"] for t in line[part]]).double() == pytest.approx(best.values, rel=1e-5)
        # the edit lies in its subspace: coordinates tell all of it
        moved = torch.tensor(line["after"]).double() - torch.tensor(line["before"]).double()
        assert float(moved.norm()) == pytest.approx(line["edit_norm"], rel=1e-5)
    assert len(basis_rows(probe, lens)) == len(EDITED) * 2 * RANK
    sizes = edit_sizes(probe, texts)
    assert (sizes.sites, sizes.positions) == ([f"resid_post.{i}" for i in EDITED], ["f1", "l2", "l1"])
    other = oracle(probe, texts[1].ids)
    for i, layer in enumerate(EDITED):
        for j, column in enumerate(SLOTS):
            pair = [
                float(e[layer, column].norm() / (s[layer][column] - e[layer, column]).norm())
                for _, s, e in (oracle(probe, text.ids), other)
            ]
            assert sizes.mean[i][j] == pytest.approx(sum(pair) / 2) and sizes.count[i][j] == 2
            assert sizes.std[i][j] == pytest.approx(abs(pair[0] - pair[1]) / 2)


def test_next_tokens_and_layers(probe: Probe) -> None:
    text = probe.text(PROMPT, answer=ANSWER)
    with_edits, states, _ = oracle(probe, text.ids)
    without, bare, _ = oracle(probe, text.ids, lambda *_: False)
    for line in next_tokens(probe, text):
        at = line["column"]
        assert close(line["kl"], divergence(with_edits[at], without[at])) and line["kl"] > 1e-6
        assert line["adapter"][0]["id"] == int(with_edits[at].argmax())
        assert close(line["p_base"], float(without[at].softmax(-1)[text.ids[at + 1]]))
    model: Any = text_model(layers=DEPTH, dtype=torch.float64)
    lines = along_layers(probe, text, Lens(probe, text))
    assert [line["site"] for line in lines] == [f"resid_post.{i}" for i in range(DEPTH)]
    for line, one, two in zip(lines, states, bare, strict=True):
        with torch.no_grad():
            p, q = (model.lm_head(model.model.norm(h[4])) for h in (one, two))
        assert close(line["kl"], divergence(p, q))
        assert line["base"][0]["id"] == int(q.argmax())


def planted(layer: int, **fields: Any) -> Any:
    """An adapter of which one layer matters: its edit is large, the others' are tiny."""
    model = adapted(torch.float32, **fields)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "intervention_" not in name or name.endswith(".R"):
                continue
            if f"layers.{layer}." in name:
                parameter.mul_(4)
            elif name.endswith(".b"):
                parameter.mul_(1e-3)
            else:
                # W = R is no edit
                rows = model.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
                parameter.copy_(rows["default"].basis() + 1e-3 * parameter)
    return model


@pytest.mark.parametrize("layer", EDITED)
def test_a_planted_layer_is_found_and_kept(layer: int, tmp_path: Path) -> None:
    model = planted(layer)
    probe = Probe(model, word_tokenizer())
    text = probe.text("w1 w2 w3 w4 w5", max_new_tokens=3)
    found = switched_off(probe, [text], kinds=["layers"])
    first, *others = found["layers"]
    assert first["layer"] == layer and first["kl"] == pytest.approx(found["kl"], rel=1e-2)
    assert all(row["kl"] < 1e-3 * found["kl"] for row in others)
    smallest = smallest_set(probe, [text])
    assert smallest["layers"] == [layer] and smallest["share"] >= 0.9 and len(smallest["steps"]) == 1
    # a random edit need not make its own answer likelier
    likelier = found["adapter"] > found["base"]
    assert smallest["measure"] == ("likelihood" if likelier else "kl")
    assert not likelier or first["share"] > 0.9
    folder = save_pruned(probe, smallest["layers"], tmp_path / "smaller")
    again = PeftModel.from_pretrained(text_model(layers=DEPTH), folder).eval()
    switch = Switch(sites=frozenset({f"resid_post.{layer}"}))
    assert Probe(again, word_tokenizer()).log_likelihoods(text, [EVERY]) == pytest.approx(
        probe.log_likelihoods(text, [switch]), rel=1e-6
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["layers"] == [layer] and config["target_modules"] == rf"model\.layers\.{layer}"
    with pytest.raises(ReftuneError, match="not empty"):
        save_pruned(probe, [layer], folder)


def test_groups_are_pruned_one_by_one(tmp_path: Path) -> None:
    groups = [
        {"positions": "f1", "layers": [1, 2]},
        {"positions": "l1", "layers": [-1, 2]},
        {"positions": "f2", "layers": [0]},
    ]
    probe = Probe(adapted(torch.float32, groups=groups, layers=None), word_tokenizer())
    text = probe.text(PROMPT, answer=ANSWER)
    folder = save_pruned(probe, [2, 3], tmp_path / "smaller")
    again = Probe(PeftModel.from_pretrained(text_model(layers=DEPTH), folder).eval(), word_tokenizer())
    assert [site.name for site in again.sites] == ["resid_post.2", "resid_post.3"]
    switch = Switch(sites=frozenset({"resid_post.2", "resid_post.3"}))
    assert again.log_likelihoods(text, [EVERY]) == pytest.approx(probe.log_likelihoods(text, [switch]), rel=1e-6)


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_lens_of_the_last_state_is_what_the_model_says(kind: str) -> None:
    overrides: dict[str, Any] = {"vocab_size": len(SPECIAL) + len(WORDS)}
    if kind == "gemma3":
        overrides["final_logit_softcapping"] = 5.0
    bare = tiny_model(kind, layers=2, overrides=overrides)
    config = ReftConfig(r=2, positions="l1", init="random", task_type="CAUSAL_LM")
    probe = Probe(get_peft_model(bare, config).eval(), word_tokenizer())
    text = probe.text(PROMPT, answer=ANSWER)
    end = probe.logits(text, [EVERY])[0]
    lens = Lens(probe, text)
    assert torch.allclose(lens(probe.seen(text).blocks[-1][4]), end[0], rtol=1e-4, atol=1e-5)
    assert lens.chain


@pytest.mark.parametrize(("component", "name"), [("attention_output", "attn_out.1"), ("attention_head[3]", "z.1.3")])
def test_other_sites_have_their_names(component: str, name: str) -> None:
    probe = Probe(adapted(torch.float32, component=component, layers=[1], positions="all", tie="all"), word_tokenizer())
    text = probe.text(PROMPT, answer=ANSWER)
    lines = edit_rows(probe, text, Lens(probe, text))
    assert {line["site"] for line in lines} == {name} and len(lines) == len(text.ids)
    # a head's edit goes through a projection before the stream has it
    assert ("promotes" in lines[0]) == (component == "attention_output")
    # what `columns` says is what was edited
    assert all(line["edit_norm"] > 0 for line in lines)
    labels = probe.labels(text)
    assert labels == ["l5", "l4", "l3", "l2", "l1", *(f"r{i + 1}" for i in range(len(text.answer)))]


def test_only_the_columns_that_are_named_are_edited(probe: Probe) -> None:
    for prompt in ("w1 w2", "w1", PROMPT):
        text = probe.text(prompt, answer=ANSWER)
        seen = probe.seen(text)
        for site in probe.sites:
            assert seen.delta(site.name).norm(dim=-1).nonzero()[:, 0].tolist() == probe.columns(site, text)


def test_what_cannot_be_explained_is_refused() -> None:
    encoder = get_peft_model(tiny_model("bert"), ReftConfig(task_type="SEQ_CLS"))
    with pytest.raises(ReftuneError, match="encoder"):
        Probe(encoder, word_tokenizer())
    with pytest.raises(ReftuneError, match="lm_head"):
        Probe(adapted(torch.float32, modules_to_save=["lm_head"]), word_tokenizer())
    nothing = Probe(adapted(torch.float32, init="zero"), word_tokenizer())
    text = nothing.text(PROMPT, answer=ANSWER)
    assert all(row["share"] is None for row in switched_off(nothing, [text])["layers"])
    with pytest.raises(ReftuneError, match="changes no next token"):
        smallest_set(nothing, [text])
