"""Which adapters an engine could do without.  Needs no vLLM."""

from __future__ import annotations

from reftune.serving.vllm.loaded import Loaded


def test_the_longest_unused_is_spare_first() -> None:
    loaded = Loaded()
    for digest in "abc":
        loaded.add(digest, named=False)
    loaded.add("n", named=True)
    loaded.touch("a")
    assert loaded.spare() == ["b", "c", "a"]
    with loaded.coming("b"):
        # the engine does not know of its request yet
        assert loaded.spare() == ["c", "a"]
    assert loaded.spare() == ["c", "a", "b"]
    loaded.add("d", named=False, dropped=["c"])
    assert "c" not in loaded and loaded.spare() == ["a", "b", "d"]
    loaded.discard("n")
    assert "n" not in loaded


def test_a_rewritten_folder_needs_its_former_adapter_no_more() -> None:
    loaded = Loaded()
    for digest in "abc":
        loaded.add(digest, named=False)
    assert loaded.rewritten("one", "a") is None and loaded.rewritten("two", "a") is None
    # the other folder still holds it
    assert loaded.rewritten("one", "b") is None
    assert loaded.rewritten("two", "c") == "a"
    loaded.add("n", named=True)
    assert loaded.rewritten("three", "n") is None and loaded.rewritten("three", "a") is None
    with loaded.coming("a"):
        assert loaded.rewritten("three", "c") is None
