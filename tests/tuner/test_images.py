"""Models of pictures and text: tokens of an image are tokens of the prompt, unless the positions leave them out."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from reftune import ReftConfig
from reftune.tuner import find_stacks
from tests.models import random_tokens
from tests.tuner.test_masks import TEXT, VISION

# their configurations take any keyword
tf: Any = transformers

IMAGE = 96
# begin, four tokens of an image, six of text
IDS = torch.cat([torch.tensor([[1, *[IMAGE] * 4]]), random_tokens(1, 6).clamp(max=90)], dim=1)
END = 8
PIXELS = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def llava() -> tuple[Any, dict[str, Tensor]]:
    vision = {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}
    config = tf.LlavaConfig(text_config={**TEXT, "model_type": "llama"}, vision_config=vision, image_token_index=IMAGE)
    return tf.LlavaForConditionalGeneration(config), {"pixel_values": PIXELS}


def gemma3() -> tuple[Any, dict[str, Tensor]]:
    text = {**TEXT, "model_type": "gemma3_text", "sliding_window": 4}
    config = tf.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=IMAGE)
    return tf.Gemma3ForConditionalGeneration(config), {"pixel_values": PIXELS}


def idefics3() -> tuple[Any, dict[str, Tensor]]:
    vision = {**VISION, "model_type": "idefics3_vision", "patch_size": 7}
    text = {**TEXT, "model_type": "llama"}
    config = tf.Idefics3Config(text_config=text, vision_config=vision, image_token_id=IMAGE, scale_factor=2)
    return tf.Idefics3ForConditionalGeneration(config), {"pixel_values": PIXELS[None]}


def qwen2_5_vl() -> tuple[Any, dict[str, Tensor]]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    text = {**TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": rope}
    sizes = {"hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 32, "depth": 2, "num_heads": 2}
    vision = {**sizes, "patch_size": 7, "spatial_merge_size": 2, "window_size": 28, "fullatt_block_indexes": [1]}
    ids = {"image_token_id": IMAGE, "video_token_id": 95, "vision_start_token_id": 94, "vision_end_token_id": 93}
    model = tf.Qwen2_5_VLForConditionalGeneration(tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    return model, {
        "pixel_values": torch.linspace(-1, 1, 16 * 3 * 2 * 49).reshape(16, -1),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        # which tokens are of an image
        "mm_token_type_ids": (IDS == IMAGE).int(),
    }


MODELS = {"llava": llava, "gemma3": gemma3, "idefics3": idefics3, "qwen2_5_vl": qwen2_5_vl}


@pytest.fixture(params=MODELS)
def made(request: Any) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    return MODELS[request.param]()


def adapted(base: Any, positions: str) -> Any:
    config = ReftConfig(r=2, layers=[0], positions=positions, init="random", task_type="CAUSAL_LM")
    return peft.get_peft_model(base, config).eval()


def edited(model: Any, given: dict[str, Any]) -> list[int]:
    """Columns at which the first block of the text returns something else than without the adapter."""
    outputs: list[Tensor] = []
    root = model.get_base_model()
    # that of the text, not that of the pictures
    stack = next(stack for stack in find_stacks(root) if len(stack.blocks) == TEXT["num_hidden_layers"])
    block = root.get_submodule(stack.blocks[0])
    handle = block.register_forward_hook(
        lambda *call: outputs.append(call[2][0] if isinstance(call[2], tuple) else call[2])
    )
    with torch.no_grad():
        model(**given)
        with model.disable_adapter():
            model(**given)
    handle.remove()
    return (outputs[0] - outputs[1]).abs().amax(-1)[0].gt(1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ("f3+l2", [0, 1, 2, 6, 7]),
        ("prompt", list(range(END))),
        (f"prompt-id({IMAGE})", [0, 5, 6, 7]),
        (f"id({IMAGE})", [1, 2, 3, 4]),
    ],
)
def test_tokens_of_images_are_tokens(made: Any, positions: str, wanted: list[int]) -> None:
    base, picture = made
    model = adapted(base, positions)
    labels = IDS.clone()
    labels[:, :END] = -100
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), **picture}
    assert edited(model, {**given, "labels": labels}) == wanted
    assert edited(model, {**given, "prompt_length": [END]}) == wanted


def test_generation_is_as_in_training(made: Any) -> None:
    base, picture = made
    model = adapted(base, f"f2+l2+prompt-id({IMAGE})")
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    out = model.generate(**given, **picture, **options, return_dict_in_generate=True, output_logits=True)
    text = out.sequences
    if "mm_token_type_ids" in picture:
        picture = {**picture, "mm_token_type_ids": (text == IMAGE).int()}
    with torch.no_grad():
        whole = model(
            input_ids=text, attention_mask=torch.ones_like(text), prompt_length=[IDS.shape[1]], **picture
        ).logits
    torch.testing.assert_close(torch.stack(out.logits, 1), whole[:, -5:-1], rtol=1e-4, atol=1e-5)
