"""What a call may and may not say, and that nothing of one call is seen by another."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import Tensor

from reftune import PositionError, ReftConfig, ReftLayer
from reftune.positions import segments_from_mask
from reftune.tuner.context import CallState, Frame, Outer
from reftune.tuner.sites import find_root
from tests.models import random_tokens, tiny_model

from .oracle import Spec, adapted, adapted_model, base_model, blocks, mask_of, pad

IDS = random_tokens(2, 6)


def state_of(model: Any) -> CallState:
    return next(module.state for module in model.modules() if isinstance(module, ReftLayer))


def is_closed(model: Any) -> bool:
    state = state_of(model)
    return not state.calls and len(state.announced) == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching"])
def test_continuous_batching_is_refused(name: str) -> None:
    model = adapted()
    with pytest.raises(NotImplementedError, match=name):
        getattr(find_root(model), name)([[1, 2, 3]])


def test_guidance_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"guidance_scale=1\.5"):
        adapted().generate(input_ids=IDS, guidance_scale=1.5, max_new_tokens=2)


@pytest.mark.parametrize("positions", ["f1+l2", "prompt", "response"])
def test_labels_without_a_prompt_are_refused(positions: str) -> None:
    labels = IDS.clone()
    labels[0, :3] = -100
    with pytest.raises(PositionError, match="labels without a prompt"):
        adapted(positions=positions)(input_ids=IDS, labels=labels)


def test_all_positions_need_no_prompt() -> None:
    out = adapted(positions="all")(input_ids=IDS, labels=IDS)
    out.loss.backward()
    with torch.no_grad():
        assert adapted(positions="all")(input_ids=IDS, logits_to_keep=3).logits.shape[1] == 3


def test_scoring_of_unknown_prompts_is_refused() -> None:
    model = adapted()
    with pytest.raises(PositionError, match="logits of several columns"):
        model(input_ids=IDS, logits_to_keep=3)
    with pytest.raises(PositionError, match="logits of several columns"):
        model(input_ids=IDS, logits_to_keep=torch.tensor([3, 4]))
    assert model(input_ids=IDS, logits_to_keep=1).logits.shape[1] == 1
    assert model(input_ids=IDS, logits_to_keep=3, prompt_length=torch.tensor([3, 3])).logits.shape[1] == 3


def test_several_tokens_behind_a_cache_are_refused() -> None:
    model = adapted()
    cache = model(input_ids=IDS, use_cache=True).past_key_values
    with pytest.raises(PositionError, match="2 tokens follow a cache"):
        model(input_ids=IDS[:, :2], past_key_values=cache)
    cache = adapted_model("llama", Spec("all"))(input_ids=IDS, use_cache=True).past_key_values
    adapted_model("llama", Spec("all"))(input_ids=IDS[:, :2], past_key_values=cache)


def test_a_block_outside_of_its_model_is_refused() -> None:
    model = adapted()
    h = torch.randn(2, 6, 32, dtype=torch.float64)
    inner = model.get_base_model().model
    rope = inner.rotary_emb(h, torch.arange(6)[None])
    with pytest.raises(PositionError, match="a block was called outside of its model"):
        inner.layers[0](h, position_embeddings=rope)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([3], "1 entries for 2 rows"), ([3, -1], r"\[1\]=-1 is not valid"), ([1.0, 2.0], "whole numbers")],
)
@pytest.mark.parametrize("generates", [False, True])
def test_wrong_lengths_are_refused(lengths: list[Any], message: str, generates: bool) -> None:
    model = adapted()
    call = model.generate if generates else model
    with pytest.raises(PositionError, match=message):
        call(input_ids=IDS, prompt_length=torch.tensor(lengths))
    assert is_closed(model)


def test_lengths_beyond_the_row_are_refused() -> None:
    model = adapted()
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with pytest.raises(PositionError, match=r"\[1\]=5 is not valid: this sequence has 4 tokens"):
        model(input_ids=IDS, attention_mask=mask, prompt_length=torch.tensor([6, 5]))
    with pytest.raises(PositionError, match=r"\[0\]=7 is not valid: this sequence has 6 tokens"):
        model.generate(input_ids=IDS, prompt_length=torch.tensor([7, 5]))


def test_a_module_with_other_tokens_is_refused() -> None:
    """The head gets the last column only, which is not what the positions count."""
    model = adapted(target_modules=["lm_head"], positions="f1")
    with pytest.raises(PositionError, match="its tokens are not known"):
        model(input_ids=IDS, logits_to_keep=1)


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("generates", [False, True])
def test_nothing_stays_open_after_an_exception(error: type[BaseException], generates: bool) -> None:
    model = adapted()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits

    def fail(*_: Any) -> None:
        raise error("stop")

    handle = blocks(model.get_base_model())[1].register_forward_hook(fail)
    labels = IDS.clone()
    labels[:, :1] = -100
    with pytest.raises(error, match="stop"):
        if generates:
            model.generate(input_ids=IDS[:, :3], max_new_tokens=2)
        else:
            model(input_ids=IDS, labels=labels, prompt_length=torch.tensor([1, 1]))
    handle.remove()
    if error is RuntimeError:
        assert is_closed(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert is_closed(model)


def test_two_threads_with_different_prompts() -> None:
    model = adapted()
    batches = [random_tokens(1 + i, 4 + i, seed=i) for i in range(4)]
    with torch.no_grad():
        expected = [model.generate(input_ids=ids, max_new_tokens=4, do_sample=False) for ids in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(5):
            found = model.generate(input_ids=batches[i], max_new_tokens=4, do_sample=False)
            if not torch.equal(found, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_hooks_of_the_user_are_kept_and_see_the_edited_state() -> None:
    base = tiny_model("llama", layers=2, dtype=torch.float64)
    seen: dict[str, Tensor] = {}
    handles = [
        base.model.layers[0].register_forward_hook(lambda m, a, out: seen.__setitem__("before", out)),
    ]
    config = ReftConfig(r=2, positions="l1", init="random", intervention="direft", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    handles.append(base.model.layers[0].register_forward_hook(lambda m, a, out: seen.__setitem__("after", out)))
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
        with model.disable_adapter():
            plain = base(input_ids=IDS, output_hidden_states=True).hidden_states
            assert torch.equal(seen["after"], plain[1])
        model(input_ids=IDS)
    assert torch.equal(seen["before"], states[1]) and torch.equal(seen["after"], states[1])
    moved = (states[1] - plain[1]).abs().amax(-1) > 1e-9
    assert moved.tolist() == [[False] * 5 + [True]] * 2


def test_a_copy_and_a_pickle_have_a_state_of_their_own() -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    assert state_of(twin) is not state_of(model)
    assert len({id(m.state) for m in twin.modules() if isinstance(m, ReftLayer)}) == 1
    again = pickle.loads(pickle.dumps(model.get_base_model()))
    answer = {"input_ids": IDS, "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(twin.generate(**answer), model.generate(**answer))
    assert torch.equal(again.generate(**answer), model.generate(**answer))
    assert find_root(twin).generate.args[0] is find_root(twin)


def test_contexts_nest() -> None:
    state = CallState()
    with state.announcing(prompt_columns=3):
        with state.announcing(adapter_names=("a",)):
            assert state.outer.prompt_columns == 3 and state.outer.adapter_names == ("a",)
        assert state.outer.adapter_names is None
        with pytest.raises(RuntimeError), state.announcing(prompt_columns=5):
            raise RuntimeError
        assert state.outer.prompt_columns == 3
    assert state.outer.prompt_columns == 0


def test_a_call_within_a_disabled_adapter_is_the_base() -> None:
    model = adapted()
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, base_model("llama")(input_ids=IDS).logits)
        answer = {"input_ids": IDS, "max_new_tokens": 3, "do_sample": False}
        assert torch.equal(model.generate(**answer), base_model("llama").generate(**answer))


def test_a_padding_state_that_is_no_number_reaches_no_gradient() -> None:
    """A slot that a short prompt cuts off may point at padding; what is there must not matter."""
    model = adapted()
    h = torch.randn(2, 6, 32, dtype=torch.float64)
    h[1, :5] = float("nan")
    frame = Frame(2, 6, segments=segments_from_mask(torch.tensor([[1] * 6, [0] * 5 + [1]])))
    layer = blocks(find_root(model))[0].hidden_edit
    with state_of(model).resumed(frame, Outer()):
        edited = layer.edit(h)
    edited[:, 5].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


# --- gradient checkpointing -------------------------------------------------------------------------------------------


def gradients(model: Any, *, interrupted: bool) -> list[Tensor]:
    labels = IDS.clone()
    labels[:, :4] = -100
    model.zero_grad()
    loss = model(input_ids=IDS, labels=labels, use_cache=False).loss
    if interrupted:
        with torch.no_grad():
            model(input_ids=random_tokens(3, 9), use_cache=False)
            with model.disable_adapter():
                model(input_ids=random_tokens(1, 2), use_cache=False)
    loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    assert any(bool(g.abs().sum() > 0) for g in found)
    return found


@pytest.mark.parametrize("component", ["block_output", "attention_output", "mlp_output", "attention_head[0]"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(component: str, reentrant: bool) -> None:
    model = adapted(component=component, blocks_of=3, positions="f1+l2", tie="group").train()
    expected = gradients(model, interrupted=False)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for interrupted in (False, True):
        found = gradients(model, interrupted=interrupted)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert is_closed(model)


def test_gradient_checkpointing_with_adapter_of_a_call_that_is_over() -> None:
    """Subspaces of the call are those of the recomputation too."""
    model = adapted(component="mlp_output", r=2, subspaces=[[0], [1]]).train()
    labels = IDS.clone()
    labels[:, :4] = -100

    def run() -> list[Tensor]:
        model.zero_grad()
        model(input_ids=IDS, labels=labels, subspaces=[[0], [1]], use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    expected = run()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.testing.assert_close(run(), expected, rtol=1e-12, atol=1e-12)


# --- encoder-decoder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["f1+l2", "prompt", "all"])
@pytest.mark.parametrize("start", [None, [0, 5, 6], [5, 6]])
def test_an_encoder_decoder_one_by_one(positions: str, start: list[int] | None) -> None:
    """Encoder and decoder are both edited; the decoder's prompt is what it starts with."""
    fields = {"r": 2, "positions": positions, "init": "random", "intervention": "direft", "layers": "all"}
    base = tiny_model("t5", layers=2, dtype=torch.float64)
    model = peft.get_peft_model(base, ReftConfig(task_type="SEQ_2_SEQ_LM", **fields), autocast_adapter_dtype=False)
    tokens = [tuple(random_tokens(1, n, seed=n)[0].tolist()) for n in (3, 7)]
    answer: dict[str, Any] = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}

    def run(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        starts = {} if start is None else {"decoder_input_ids": torch.tensor([start] * len(ids))}
        out = model.generate(input_ids=ids, attention_mask=mask, **starts, **answer)
        again = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **starts, **answer)
        assert torch.equal(out, again)
        with torch.no_grad():
            return out, model(input_ids=ids, attention_mask=mask, decoder_input_ids=out).logits

    sequences, logits = run(pad(tokens, "right"), mask_of(tokens, "right"))
    for i, row in enumerate(tokens):
        alone, expected = run(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
        assert torch.equal(sequences[i], alone[0])
        # T5 keeps its softmax and its biases in float32
        assert (logits[i] - expected[0]).abs().max() < 1e-5


def test_a_start_token_that_transformers_adds_is_counted() -> None:
    fields = {"positions": "l1", "init": "random", "intervention": "direft", "layers": [2, 3]}
    base = tiny_model("t5", layers=2, dtype=torch.float64)
    model = peft.get_peft_model(base, ReftConfig(task_type="SEQ_2_SEQ_LM", **fields), autocast_adapter_dtype=False)
    answer = {"input_ids": IDS, "max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    starts = [torch.tensor([start] * 2) for start in ([0, 5, 6], [5, 6])]
    given, added = (model.generate(**answer, decoder_input_ids=start) for start in starts)
    assert torch.equal(given.sequences, added.sequences)
    assert torch.equal(torch.stack(given.logits), torch.stack(added.logits))


def test_patches_of_a_picture_are_a_prompt() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = tf.ViTForImageClassification(tf.ViTConfig(image_size=8, patch_size=4, **sizes)).eval()
    config = ReftConfig(positions="f1+l2", layers=[0], init="random", intervention="direft")
    model = peft.get_peft_model(base, config).eval()
    pixels = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        edited = model(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
        with model.disable_adapter():
            plain = model(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
    moved = (edited - plain).abs().amax(-1) > 1e-6
    assert moved.tolist() == [[True, False, False, True, True]] * 3


def test_drafts_of_the_own_first_layers_know_the_prompt() -> None:
    """The assistant is the model itself: its drafts are generations within a generation."""
    model = adapted()
    ends: set[int] = set()

    def record(*_: Any) -> None:
        frame = state_of(model).frame
        assert frame is not None and frame.segments is not None
        ends.update(frame.segments.end.tolist())

    blocks(find_root(model))[0].register_forward_pre_hook(record)
    model.generate(input_ids=IDS[:1], max_new_tokens=8, do_sample=False, assistant_early_exit=1)
    assert ends == {6}


@pytest.mark.parametrize("form", ["count", "mask", "numbers"])
def test_labels_cut_to_the_kept_columns_say_where_the_prompt_ends(form: str) -> None:
    """As ms-swift calls: label j + 1 is that of the token behind the j-th kept column."""
    model = adapted(positions="f1+l2")
    ids, end = random_tokens(1, 9), 5
    labels = torch.full((1, 9), -100)
    labels[:, end:] = ids[:, end:]
    whole = model(input_ids=ids, labels=labels)
    columns = torch.arange(end - 1, 9)
    kept = {"count": 5, "mask": torch.isin(torch.arange(9), columns), "numbers": columns}[form]
    cut = model(input_ids=ids, labels=labels[:, end - 1 :], logits_to_keep=kept)
    assert torch.equal(cut.logits, whole.logits[:, columns])
    torch.testing.assert_close(cut.loss, whole.loss)
    otherwise = model(input_ids=ids, logits_to_keep=1).logits
    assert not torch.equal(otherwise[:, -1], whole.logits[:, -1])
