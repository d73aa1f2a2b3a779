"""Adapters as a server process on vLLM reads them; without vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reftune.serving import AdapterError
from reftune.serving.cards import AdapterCard
from reftune.serving.vllm.adapters import Reader
from reftune.serving.vllm.options import Options
from tests.serving.folders import KINDS, save_adapters
from tests.serving.vllm.configs import llama_config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    ties = {"r": 2, "positions": "f3+l3", "tie": "none"}
    kinds = {**{name: KINDS[name] for name in ("loreft", "two", "red-prompt")}, "ties": ties}
    return save_adapters(tmp_path_factory.mktemp("read"), kinds)


def reader(device: str = "cpu", **options: Any) -> Reader:
    return Reader(llama_config(layers=2, width=32, device=device), Options(**options))


def test_what_was_read_is_known_until_a_file_changes(folders: dict[str, Path]) -> None:
    found, path = reader(), folders["two"]
    assert found.known(str(path)) is None
    maps, card = found.read(str(path))
    assert found.known(str(path)) == card
    # workers find their maps by the numbers of the card's sites
    assert (maps.digest, maps.sites) == (card.digest, card.sites)
    assert card.sites == (((0, "f2", "all"),), ((1, "l1", "all"),)) and card.layers == ((0,), (1,))
    (path / "adapter_config.json").touch()
    assert found.known(str(path)) is None


def test_a_card_there_and_back(folders: dict[str, Path]) -> None:
    for path in folders.values():
        card = reader().read(str(path)).card
        assert AdapterCard.from_dict(card.as_dict()) == card


def test_ranks_and_sets_have_their_limits(folders: dict[str, Path]) -> None:
    with pytest.raises(AdapterError, match="rank 2, but this server takes ranks up to 1; start it with --reft-max-ra"):
        reader(max_rank=1).read(str(folders["loreft"]))
    # RED has no rank
    reader(max_rank=1).read(str(folders["red-prompt"]))
    # one Φ for each position
    reader(slots=8).read(str(folders["ties"]))
    with pytest.raises(AdapterError, match="6 different sets of interventions, but there is room for 1 of each"):
        reader("cuda", slots=8).read(str(folders["ties"]))
    reader("cuda", slots=48).read(str(folders["ties"]))
