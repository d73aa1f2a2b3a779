"""Names and folders of adapters: what is read, what is refused, and that no link leads out of the allowed folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reftune.errors import ReftuneError
from reftune.serving import ReftModule, allowed_path, check_name, parse_modules


def test_both_forms() -> None:
    texts = ["a=/x/y", '{"name": "b c", "path": "owner/name"}', "d=has=equals", '{"name": "e", "path": "p"}']
    assert parse_modules(texts) == [
        ReftModule("a", "/x/y"),
        ReftModule("b c", "owner/name"),
        ReftModule("d", "has=equals"),
        ReftModule("e", "p"),
    ]
    assert parse_modules([]) == []
    named = json.dumps({"name": "a", "path": "p", "base_model_name": "m"})
    assert parse_modules([named], base_names=["m"]) == [ReftModule("a", "p")]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ["'a'", "name=path"]),
        ("=p", ["name=path"]),
        ("a=", ["name=path"]),
        ("", ["name=path"]),
        ("{", ["JSON"]),
        ('[{"name": "a", "path": "p"}]', ["one JSON object"]),
        ('{"name": "a"}', ["a name and a path"]),
        ('{"name": "a", "path": 3}', ["a name and a path"]),
        ('{"name": "a", "path": "p", "rank": 1}', ["['rank']", "valid are name, path"]),
        ('{"name": "a", "path": "p", "base_model_name": "x"}', ["'x'", "'m'"]),
        ("m=p", ["'m'", "base model"]),
        (" a=p", ["no space"]),
        ('{"name": "a\\nb", "path": "p"}', ["printable"]),
        ('{"name": "\\ud800", "path": "p"}', ["printable"]),
        ("x" * 257 + "=p", ["256"]),
    ],
)
def test_what_cannot_be_served_is_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(ReftuneError) as error:
        parse_modules([text], base_names=["m"])
    message = str(error.value)
    assert all(part in message for part in parts), message
    message.encode()


def test_a_name_is_given_once() -> None:
    with pytest.raises(ReftuneError, match="'a' is given twice, for 'p' and 'q'"):
        parse_modules(["a=p", "b=p", "a=q"])
    check_name("a")


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("x")
    return folder


def test_paths_within_the_allowed_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, other = adapter(tmp_path / "in" / "a"), adapter(tmp_path / "other" / "b")
    folders = [tmp_path / "in", tmp_path / "other"]
    assert allowed_path(str(inside), folders) == inside.resolve()
    assert allowed_path(str(other), folders) == other.resolve()
    assert allowed_path(str(inside / ".." / "a"), folders) == inside.resolve()
    monkeypatch.chdir(tmp_path / "in")
    assert allowed_path("a", folders) == inside.resolve()
    (tmp_path / "in" / "link").symlink_to(inside)
    assert allowed_path(str(tmp_path / "in" / "link"), folders) == inside.resolve()
    # through a link to an allowed folder
    (tmp_path / "way").symlink_to(tmp_path / "in")
    assert allowed_path(str(inside), [tmp_path / "way"]) == inside.resolve()


def test_no_way_out_of_the_allowed_folders(tmp_path: Path) -> None:
    secret = adapter(tmp_path / "secret")
    inside = adapter(tmp_path / "in" / "a")
    (tmp_path / "in" / "link").symlink_to(secret)
    mixed = adapter(tmp_path / "in" / "mixed")
    (mixed / "adapter_model.safetensors").unlink()
    (mixed / "adapter_model.safetensors").symlink_to(secret / "adapter_model.safetensors")
    styled = adapter(tmp_path / "in" / "styled")
    (styled / "reftune.json").symlink_to(secret / "adapter_config.json")
    loop = tmp_path / "in" / "loop"
    loop.symlink_to(loop)
    adapter(tmp_path / "in-not")
    bad = [secret, inside / ".." / ".." / "secret", tmp_path / "in" / "link", mixed, styled, tmp_path / "in-not"]
    for path in [*map(str, bad), "/etc", "\0", "", "/", str(tmp_path / "in" / "..")]:
        with pytest.raises(ReftuneError, match="not in a folder"):
            allowed_path(path, [tmp_path / "in"])
    with pytest.raises(ReftuneError, match="allowed: none"):
        allowed_path(str(inside), [])


def test_whether_something_is_there_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    adapter(tmp_path / "there")
    said = []
    for name in ("there", "gone!"):
        with pytest.raises(ReftuneError) as error:
            allowed_path(str(tmp_path / name), [tmp_path / "in"])
        said.append(str(error.value).replace(name, ""))
    assert said[0] == said[1]
