"""`reftune push` and `train --push` against a small stand-in of the Hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, constants

from tests.cli.conftest import Command
from tests.training.text_models import CHATS

TOKEN = "hf_ann"


@dataclass
class Hub:
    """What was put on it, by repository."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    refuses: str | None = None


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def reply(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
        elif self.path == "/api/whoami-v2":
            self.reply(200, {"type": "user", "name": "ann"})
        else:
            self.reply(404, {"error": "not here"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path.startswith("/api/validate-yaml"):
            self.reply(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.reply(200, {"files": files})
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply(200, {"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1", "success": True})
        else:
            self.reply(404, {"error": f"{self.path} is not here"})

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if self.hub.refuses:
            self.reply(400, {"error": self.hub.refuses}, X_Error_Message=self.hub.refuses)
            return
        known = name in self.hub.files
        self.hub.files.setdefault(name, {})
        self.hub.private.setdefault(name, wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.reply(409 if known else 200, {"url": f"{self.hub.url}/{name}", "error": "it exists"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OfThis", (Handler,), {"hub": found}))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.close_session()
    yield found
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def chats(folder: Path) -> Path:
    file = folder / "train.jsonl"
    file.write_text("\n".join(json.dumps(record) for record in CHATS), encoding="utf-8")
    return file


def test_the_adapter_and_its_card_go_there_and_nothing_else(reftune: Command, hub: Hub, adapter: Path) -> None:
    (adapter / "checkpoints").mkdir(exist_ok=True)
    (adapter / "checkpoints" / "optimizer.pt").write_bytes(b"large")
    outcome = reftune("push", adapter, "ann/mine", "--private", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json == {"url": f"{hub.url}/ann/mine"}
    files = hub.files["ann/mine"]
    wanted = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert wanted <= set(files) <= {*wanted, "reftune.json"}
    assert all(content == (adapter / name).read_bytes() for name, content in files.items())
    assert hub.private == {"ann/mine": True}
    assert "reft" in ModelCard(files["README.md"].decode()).data.to_dict()["tags"]
    # into the same one again
    assert reftune("push", adapter, "ann/mine").code == 0


@pytest.mark.parametrize(
    ("name", "said"), [("ann/a/b", "no name of a repository"), ("ann/mine!", "no name of a repository")]
)
def test_a_name_that_is_none(reftune: Command, adapter: Path, name: str, said: str) -> None:
    outcome = reftune("push", adapter, name)
    assert (outcome.code, said in outcome.err) == (1, True), outcome.err


def test_what_keeps_it_from_the_hub_is_told(
    reftune: Command, hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no adapter: it lacks adapter_config.json" in reftune("push", empty, "ann/mine").err
    hub.refuses = "You have too many repositories"
    assert "the Hub refused 'ann/mine': You have too many" in " ".join(reftune("push", adapter, "ann/mine").err.split())
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "does not know this login" in reftune("push", adapter, "ann/mine").err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "nobody is logged in" in reftune("push", adapter, "ann/mine").err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in reftune("push", adapter, "ann/mine").err
    assert hub.files == {}


def test_training_with_push_asks_for_the_login_before_it_trains(reftune: Command, base: Path, tmp_path: Path) -> None:
    flags = ("--model", base, "--data", chats(tmp_path), "--output", tmp_path / "new", "--push", "ann/mine")
    outcome = reftune("train", *flags)
    assert outcome.code == 1 and "HF_HUB_OFFLINE" in outcome.err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_was_trained_is_pushed(reftune: Command, hub: Hub, base: Path, tmp_path: Path) -> None:
    output = tmp_path / "new"
    flags = ("--model", base, "--data", chats(tmp_path), "--output", output, "--epochs", 1, "--push", "ann/mine")
    outcome = reftune("train", *flags, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["url"] == f"{hub.url}/ann/mine"
    assert hub.files["ann/mine"]["adapter_model.safetensors"] == (output / "adapter_model.safetensors").read_bytes()
