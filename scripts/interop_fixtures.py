"""Make the fixtures of tests/interop: checkpoints that the real pyreft and AdapterHub wrote, and their logits.

Run from the root of the repository; the environments are those of the benchmarks, made on first use:

    python scripts/interop_fixtures.py

It starts itself once in each environment.  Nothing of the libraries is changed.  Every case is an adapter with drawn
weights on the tiny model of tests/interop/base_model.py; of each, the folder that the library saved and logits.pt, the
logits of the same positions, stay in tests/interop/fixtures/.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tests" / "interop" / "fixtures"
sys.path.insert(0, str(ROOT))

# of each case: class, component, layers, how many Φ at each, positions, and what the class is told besides
PYREFT: dict[str, dict[str, Any]] = {
    "loreft-shared": {"cls": "Loreft", "layers": [0, 2], "positions": "f2+l2"},
    "loreft-unshared": {"cls": "Loreft", "layers": [0, 1], "positions": "f3+l3", "twice": True},
    "loreft-before-last": {"cls": "Loreft", "layers": [0, 1], "positions": "f2+l2", "twice": True, "cut": 1},
    "loreft-path": {"cls": "Loreft", "layers": [1], "positions": "l1", "component": "model.layers[{}].output"},
    "loreft-gelu": {"cls": "Loreft", "layers": [1], "positions": "f1+l1", "act_fn": "gelu"},
    "noreft": {"cls": "Noreft", "layers": [1], "positions": "l2", "component": "mlp_output", "add_bias": True},
    "consreft": {"cls": "Consreft", "layers": [0, 2], "positions": "f3"},
    "lobireft": {"cls": "Lobireft", "layers": [1], "positions": "l2", "component": "attention_output"},
    "direft": {"cls": "Direft", "layers": [0, 1, 2], "positions": "f1+l1"},
    "nodireft": {"cls": "Nodireft", "layers": [1], "positions": "f1+l2", "add_bias": True},
}


def make_pyreft(folder: Path, names: list[str]) -> None:
    """In an environment of pyreft's."""
    import pyreft  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from tests.interop.base_model import IDS, WIDTH, base_model  # noqa: PLC0415

    for name in names:
        case = dict(PYREFT[name])
        cls = getattr(pyreft.interventions, f"{case.pop('cls')}Intervention")
        positions, layers = case.pop("positions"), case.pop("layers")
        component, cut = case.pop("component", "block_output"), case.pop("cut", 0)
        times = 2 if case.pop("twice", False) else 1
        torch.manual_seed(sum(map(ord, name)))
        representations = [
            {
                "layer": layer,
                "component": component.format(layer),
                "low_rank_dimension": 2,
                "intervention": cls(embed_dim=WIDTH, low_rank_dimension=2, dtype=torch.float32, **case),
            }
            for _ in range(times)
            for layer in layers
        ]
        model = pyreft.get_reft_model(base_model(), pyreft.ReftConfig(representations=representations))
        ids = torch.tensor(IDS)
        where = pyreft.dataset.get_intervention_locations(
            last_position=ids.shape[1] - cut,
            positions=positions,
            num_interventions=len(representations),
            share_weights=times == 1,
        )
        place = {"sources->base": (None, [[w] * len(ids) for w in where])}
        # AdamW's weight decay would make R zero
        optimiser = torch.optim.SGD([p for p in model.get_trainable_parameters() if p.requires_grad], lr=0.3)
        for _ in range(3):
            model({"input_ids": ids}, unit_locations=place)[1].logits.logsumexp(-1).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            _, output = model({"input_ids": ids}, unit_locations=place)
        model.save(str(folder / name))
        torch.save(output.logits.clone(), folder / name / "logits.pt")


# of each case: configuration, its fields
ADAPTERHUB: dict[str, tuple[str, dict[str, Any]]] = {
    "loreft-tied": ("LoReftConfig", {"prefix_positions": 2, "suffix_positions": 2, "r": 2, "tied_weights": True}),
    "loreft-untied": ("LoReftConfig", {"prefix_positions": 1, "suffix_positions": 3, "r": 2, "layers": [0, 2]}),
    "loreft-gelu": ("LoReftConfig", {"r": 2, "layers": [1], "non_linearity": "gelu"}),
    "noreft": ("NoReftConfig", {"prefix_positions": 2, "suffix_positions": 1, "r": 3, "layers": [1]}),
    "direft": ("DiReftConfig", {"prefix_positions": 0, "suffix_positions": 2, "r": 2, "layers": [0, 1]}),
}


def make_adapterhub(folder: Path, names: list[str]) -> None:
    """In the environment of AdapterHub's adapters."""
    import adapters  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from tests.interop.base_model import IDS, base_model  # noqa: PLC0415

    for name in names:
        kind, fields = ADAPTERHUB[name]
        torch.manual_seed(sum(map(ord, name)))
        model: Any = base_model()
        adapters.init(model)
        model.add_adapter("mine", config=getattr(adapters, kind)(dropout=0.0, **fields))
        model.train_adapter("mine")
        ids = torch.tensor(IDS)
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
        for _ in range(3):
            model(ids).logits.logsumexp(-1).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
        model.eval()
        with torch.no_grad():
            logits = model(ids).logits.clone()
        model.save_adapter(str(folder / name), "mine")
        torch.save(logits, folder / name / "logits.pt")


def run(environment: str, *arguments: str, **variables: str) -> None:
    from benchmarks.environments import python_of  # noqa: PLC0415

    command = [python_of(environment), __file__, *arguments]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", **variables})


def main() -> None:
    if len(sys.argv) > 1:
        which, folder, *names = sys.argv[1:]
        Path(folder).mkdir(parents=True, exist_ok=True)
        {"pyreft": make_pyreft, "adapterhub": make_adapterhub}[which](Path(folder), names)
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    run("pyreft", "pyreft", str(FOLDER / "pyreft-0.1.0"), *PYREFT)
    # the oldest, with the pyvene of its day in place of the environment's
    old = ROOT / ".venv-peers" / "pyreft-0.0.5"
    if not old.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(old)]
        subprocess.run([*pip, "pyreft==0.0.5", "pyvene==0.1.2", "evaluate==0.4.3"], check=True)
    run("pyreft", "pyreft", str(FOLDER / "pyreft-0.0.5"), "loreft-unshared", "direft", PYTHONPATH=str(old))
    run("adapterhub", "adapterhub", str(FOLDER / "adapterhub-1.3.0"), *ADAPTERHUB)


if __name__ == "__main__":
    main()
