"""Control vectors, read back by gguf's own reader."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from peft import get_peft_model

import reftune
from reftune.errors import ReftuneError
from reftune.interop.gguf import export
from reftune.models import save_adapter
from tests.interop.base_model import IDS, base_model, save_base


def saved(folder: Path, **fields):
    base = save_base(folder / "base")
    model = base_model()
    model.name_or_path = str(base)
    torch.manual_seed(0)
    common = {"positions": "all", "layers": [1, 2], "r": 2, "init": "random", "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, reftune.ReftConfig(**{**common, **fields}))
    return adapted.eval(), str(save_adapter(adapted, folder / "adapter"))


@pytest.mark.parametrize("kind", ["steer", "lobireft"])
@torch.no_grad()
def test_what_is_written_is_what_is_added_at_every_token(kind: str, tmp_path: Path) -> None:
    model, adapter = saved(tmp_path, intervention=kind)
    export(adapter, tmp_path / "vector.gguf")
    reader = gguf.GGUFReader(tmp_path / "vector.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if "." in name and name[0] != "G"}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama" and fields["controlvector.layer_count"] == 3
    directions = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert directions.keys() == {"direction.1", "direction.2"}
    # as llama.cpp does it: behind block i
    bare = base_model()
    for i in (1, 2):
        add = directions[f"direction.{i}"]
        bare.model.layers[i].register_forward_hook(lambda module, args, output, add=add: output + add)
    ids = torch.tensor(IDS)
    torch.testing.assert_close(bare(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"intervention": "loreft"}, "depends on the hidden state"),
        ({"intervention": "steer", "positions": "prompt"}, "positions 'prompt'"),
        ({"intervention": "steer", "layers": "all"}, "edits layer 0"),
        ({"intervention": "steer", "component": "mlp_output"}, "edits mlp_output"),
        ({"intervention": "red"}, "red has no rank"),
    ],
)
def test_everything_else_is_refused_by_name(fields, told: str, tmp_path: Path) -> None:
    _, adapter = saved(tmp_path, **fields)
    with pytest.raises(ReftuneError, match=f"cannot be a control vector of llama.cpp: .*{told}"):
        export(adapter, tmp_path / "vector.gguf")
    assert not (tmp_path / "vector.gguf").exists()
