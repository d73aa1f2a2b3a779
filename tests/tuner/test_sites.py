"""The edit is where its component says, in every architecture.

`steer` adds one constant vector, which the tests add by other means: as the bias of the projection that ends the
component.  In float64, so that what differs is the place and not the rounding.
"""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from reftune import ReftConfig
from reftune.tuner.sites import find_sites, find_stacks
from tests.models import HEADS, HIDDEN, KINDS, tiny_model
from tests.tuner.adapters import LAYERS, TASKS, adapted, config, inputs, logits
from tests.zoo.recipe import classes
from tests.zoo.recipe import tiny_model as zoo_model

LLAMA = ("model.layers", "self_attn.o_proj", "mlp.down_proj")
BERT = ("attention.output.dense", "output.dense")
# blocks, and within them the last projection of attention and of the MLP
PROJECTIONS = {
    **dict.fromkeys(("llama", "mistral", "qwen3", "gemma3"), LLAMA),
    "mixtral": ("model.layers", "self_attn.o_proj", "mlp"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
    "phi": ("model.layers", "self_attn.dense", "mlp.fc2"),
    "bloom": ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    "bert": ("bert.encoder.layer", *BERT),
    "roberta": ("roberta.encoder.layer", *BERT),
    "t5": ("encoder.block", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo"),
}
T5_DECODER = ("decoder.block", "layer.0.SelfAttention.o", "layer.2.DenseReluDense.wo")
# transformers' grouped product over experts has no float64
DTYPES = {"mixtral": torch.float32}
every_kind = pytest.mark.parametrize("kind", KINDS)


def base(kind: str) -> Any:
    """The base model, as precise as it can be."""
    return tiny_model(kind, layers=LAYERS, dtype=DTYPES.get(kind, torch.float64))


def tokens(kind: str) -> dict[str, Tensor]:
    """A batch without padding: some models return NaN there."""
    return {**inputs(kind), "attention_mask": torch.ones(3, 6, dtype=torch.long)}


def same(got: Tensor, wanted: Tensor) -> None:
    """Equal up to the order of a few sums."""
    tolerance = 1e-10 if wanted.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def steered(kind: str, *, layer: int, component: str) -> tuple[Any, Tensor]:
    """A model in float64 with a constant vector at one site, and the vector."""
    fields = {"intervention": "steer", "positions": "all", "layers": [layer], "component": component}
    model = peft.get_peft_model(base(kind), config(kind, **fields))
    phis = {
        name: p.to(DTYPES.get(kind, torch.float64)) for name, p in model.named_parameters() if "intervention_" in name
    }
    (a,) = [p for name, p in phis.items() if name.endswith(".a")]
    (v,) = [p for name, p in phis.items() if name.endswith(".v")]
    return model.eval(), (a * v).detach()


def biased(kind: str, path: str, bias: Tensor) -> Tensor:
    """Logits of the base model where `bias` is added to what the module at `path` returns."""
    model = base(kind)
    model.get_submodule(path).register_forward_hook(lambda module, args, output: output + bias)
    return logits(model, tokens(kind))


def places(kind: str) -> list[tuple[int, tuple[str, str, str]]]:
    """Index of the last block of each stack, counted through, and the names in it."""
    last = [(LAYERS - 1, PROJECTIONS[kind])]
    return [*last, (2 * LAYERS - 1, T5_DECODER)] if kind == "t5" else last


@every_kind
@pytest.mark.parametrize("component", ["attention_output", "mlp_output"])
def test_output_of_attention_and_mlp_before_the_residual(kind: str, component: str) -> None:
    for layer, (blocks, attention, mlp) in places(kind):
        model, v = steered(kind, layer=layer, component=component)
        name = attention if component == "attention_output" else mlp
        wanted = biased(kind, f"{blocks}.{LAYERS - 1}.{name}", v)
        assert not torch.allclose(wanted, logits(base(kind), tokens(kind)), atol=1e-4)
        same(logits(model, tokens(kind)), wanted)


@every_kind
@pytest.mark.parametrize("head", [1, HEADS - 1])
def test_output_of_one_head(kind: str, head: int) -> None:
    for layer, (blocks, attention, _) in places(kind):
        model, v = steered(kind, layer=layer, component=f"attention_head[{head}]")
        path = f"{blocks}.{LAYERS - 1}.{attention}"
        projection: Any = base(kind).get_submodule(path)
        weight = projection.weight if isinstance(projection, nn.Linear) else projection.weight.T
        width = HIDDEN // HEADS
        wanted = biased(kind, path, weight[:, head * width : (head + 1) * width].detach() @ v)
        same(logits(model, tokens(kind)), wanted)


@every_kind
def test_output_of_a_block_is_the_recorded_hidden_state(kind: str) -> None:
    model, v = steered(kind, layer=0, component="block_output")
    name = "encoder_hidden_states" if kind == "t5" else "hidden_states"
    with torch.no_grad():
        before = base(kind)(**tokens(kind), output_hidden_states=True)[name]
        after = model(**tokens(kind), output_hidden_states=True)[name]
    assert torch.equal(before[0], after[0])
    same(after[1] - before[1], v.expand_as(before[1]))


def picture_to_text() -> Any:
    """A ViT of width 16 and a BERT of width 32."""
    vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    bert = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    joint = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        tf.ViTConfig(**vit, image_size=28, patch_size=14), tf.BertConfig(**bert, intermediate_size=64)
    )
    joint.decoder_start_token_id, joint.pad_token_id = 1, 0
    return tf.VisionEncoderDecoderModel(config=joint).eval()


@pytest.mark.parametrize("component", ["block_output", "attention_output", "mlp_output"])
def test_an_encoder_and_a_decoder_of_two_widths(component: str) -> None:
    fields = {"layers": "all", "component": component, "init": "random", "positions": "f1+l1"}
    model = peft.get_peft_model(picture_to_text(), ReftConfig(r=2, **fields))
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith(".R")]
    assert shapes == [(2, 16), (2, 16), (2, 32), (2, 32)]
    given = {"pixel_values": torch.randn(2, 3, 28, 28), "decoder_input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]])}
    with_it = logits(model, given)
    with model.disable_adapter():
        assert not torch.equal(with_it, logits(model, given))


def test_heads_are_counted_in_the_stack_that_has_them() -> None:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 2}
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    model = tf.BartForConditionalGeneration(tf.BartConfig(vocab_size=97, d_model=32, **heads, **sizes))
    stacks = find_stacks(model)
    for layer, head, width in ((0, 3, 32 // 4), (2, 1, 32 // 2)):
        (group,) = ReftConfig(component=f"attention_head[{head}]", layers=[layer]).resolved_groups()
        assert [site.width for site in find_sites(model, stacks, group)] == [width]
    (group,) = ReftConfig(component="attention_head[2]", layers=[2]).resolved_groups()
    with pytest.raises(ValueError, match=r"heads 0\.\.1"):
        find_sites(model, stacks, group)


def test_a_named_module_has_the_width_of_its_stack() -> None:
    model = peft.get_peft_model(
        picture_to_text(), ReftConfig(r=2, target_modules=r"encoder\.(layers|encoder\.layer)\.0", positions="all")
    )
    assert [tuple(p.shape) for name, p in model.named_parameters() if name.endswith(".R")] == [(2, 16)]


@pytest.mark.parametrize(
    "name, blocks",
    [
        # within a model of text and pictures
        ("T5Gemma2ForConditionalGeneration", "model.encoder.text_model.layers.0"),
        # beside convolutions, which are checkpointed like blocks
        ("SpeechT5ForSpeechToText", "speecht5.encoder.wrapped_encoder.layers.0"),
    ],
)
def test_the_encoder_is_found_beside_other_lists(name: str, blocks: str) -> None:
    (model_type,) = {model_type for _, model_type, known in classes() if known == name}
    stacks = find_stacks(zoo_model(model_type, name))
    assert [stack.role for stack in stacks] == ["encoder", "decoder"]
    assert stacks[0].blocks[0] == blocks


def test_layers_of_an_encoder_decoder_are_counted_through() -> None:
    stacks = find_stacks(tiny_model("t5", layers=LAYERS))
    assert [stack.role for stack in stacks] == ["encoder", "decoder"]
    model = adapted("t5", depth=3, positions="prompt")
    edited = [name for name, p in model.named_parameters() if name.endswith(".R")]
    assert [name.split(".")[2] for name in edited] == ["encoder"] * 3 + ["decoder"] * 3


@every_kind
@pytest.mark.parametrize("component", ["block_output", "attention_output", "mlp_output", "attention_head[1]"])
def test_a_fresh_identity_is_the_base_model_bit_for_bit(kind: str, component: str) -> None:
    before = logits(tiny_model(kind, layers=LAYERS).requires_grad_(False), tokens(kind))
    for positions in ("f2+l2", "prompt", "all"):
        model = peft.get_peft_model(
            tiny_model(kind, layers=LAYERS),
            config(kind, positions=positions, component=component, init="identity"),
        )
        assert torch.equal(logits(model.eval(), tokens(kind)), before)


def test_the_blocks_are_written_into_the_config_for_readers() -> None:
    model = peft.get_peft_model(tiny_model("llama"), config(layers=[1, -1], component="mlp_output"))
    assert model.peft_config["default"].target_modules == r"model\.layers\.1\.mlp|model\.layers\.3\.mlp"
    assert model.peft_config["default"].layers == [1, -1]


def test_groups_without_layers_are_found_again_when_the_config_is_used_twice() -> None:
    two = [{"component": "mlp_output"}, {"component": "attention_output", "r": 1}]
    shared = config(groups=two, positions="l1")
    model = peft.get_peft_model(tiny_model("llama", layers=LAYERS), shared)
    model.add_adapter("again", shared)
    shapes = {}
    for name in ("default", "again"):
        found = {k.replace(f".{name}.", "."): p.shape for k, p in model.named_parameters() if f".{name}." in k}
        shapes[name] = {key: shape for key, shape in found.items() if "intervention_" in key}
    assert shapes["default"] == shapes["again"]
    assert len(shapes["default"]) == 2 * LAYERS * 3


# What does not exist ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layers": [7]}, r"layers=\[7\].*layers 0\.\.1"),
        ({"component": "attention_head[4]"}, r"attention_head\[4\].*heads 0\.\.3"),
        ({"r": HIDDEN + 1}, f"r={HIDDEN + 1}.*d={HIDDEN}"),
        ({"component": "attention_head[0]", "r": 9}, "r=9.*d=8"),
        ({"groups": [{"positions": "f1"}, {"positions": "f3"}]}, "disjoint positions"),
        ({"groups": [{"positions": "f1"}, {"positions": "all", "layers": 1}]}, "disjoint positions"),
        ({"target_modules": ["no_such_module"]}, "not found in the base model"),
    ],
)
def test_what_the_model_does_not_have_is_refused_and_leaves_it_as_it_was(fields: dict[str, Any], message: str) -> None:
    model = tiny_model("llama", layers=LAYERS)
    names, before = [name for name, _ in model.named_modules()], logits(model)
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, config(**fields))
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(logits(model), before)


def test_a_model_without_blocks_needs_target_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Conv1d(3, 3, 1))
    with pytest.raises(ValueError, match="target_modules"):
        peft.get_peft_model(model, ReftConfig(r=2))
    with pytest.raises(ValueError, match="width of the output of '2'"):
        peft.get_peft_model(model, ReftConfig(r=2, target_modules=["2"]))


def test_any_linear_layer_can_be_named() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    before = model(x)
    adapted_model: Any = peft.get_peft_model(model, ReftConfig(r=2, target_modules=["0"], positions="all"))
    assert torch.equal(adapted_model(x), before)
    (R,) = [p for name, p in adapted_model.named_parameters() if name.endswith(".R")]
    assert R.shape == (2, 6)
    adapted_model(x).sum().backward()
    assert {name.rsplit(".", 1)[1] for name, p in adapted_model.named_parameters() if p.grad is not None} == {
        "R",
        "dW",
        "b",
    }


def test_all_components_of_a_layer_have_sites_of_their_own() -> None:
    model = tiny_model("llama", layers=LAYERS)
    stacks = find_stacks(model)
    found = set()
    for component in ("block_output", "attention_output", "mlp_output", "attention_head[0]", "attention_head[1]"):
        (group,) = ReftConfig(component=component, layers=[0]).resolved_groups()
        found |= {(site.path, site.child) for site in find_sites(model, stacks, group)}
    assert len(found) == 5
    assert set(TASKS) <= set(KINDS)
