"""A tiny base model and adapters of many kinds on disk, and servers of them.

Must not know: what is tested.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from reftune.serving import ReftModule
from reftune.serving.embedded.server import EmbeddedServer, build
from reftune.serving.embedded.settings import ServeSettings
from tests.serving.folders import BASE, KINDS, save_adapters, save_text_base

PATIENCE = 30.0


class Brake:
    """Holds the model before a forward call, so that tests know what runs without waiting for the clock."""

    def __init__(self, model: Any) -> None:
        self.changed = threading.Condition()
        self.arrived = 0
        self.permits = 0
        self.is_free = True
        self.is_held = False
        model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: Any, args: Any, kwargs: Any) -> None:
        with self.changed:
            self.arrived += 1
            self.is_held = not (self.is_free or self.permits)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.is_free or self.permits)
            self.permits -= not self.is_free
            self.is_held = False

    def hold(self) -> None:
        """The next forward call waits."""
        with self.changed:
            self.is_free, self.permits = False, 0

    def wait_until_held(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.is_held, PATIENCE), "the model was never called"

    def step(self) -> None:
        """Let one forward call pass, until the next one comes."""
        with self.changed:
            seen = self.arrived
            self.permits += 1
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.arrived > seen, PATIENCE), "the model was not called again"

    def release(self) -> None:
        with self.changed:
            self.is_free = True
            self.changed.notify_all()


def brakes_of(model: Any) -> list[Brake]:
    """All that were put on it."""
    hooks = model._forward_pre_hooks.values()
    return [hook.__self__ for hook in hooks if isinstance(getattr(hook, "__self__", None), Brake)]


class Running:
    """A server in a thread of this process."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.service = server.service
        self.engine = server.service.engine
        self.brake = Brake(self.engine.bank.base)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def client(self, **options: Any) -> OpenAI:
        defaults = {"api_key": "none", "max_retries": 0, "timeout": PATIENCE}
        return OpenAI(base_url=f"{self.url}/v1", **{**defaults, **options})


Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_base(tmp_path_factory.mktemp("served") / "base")


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → folder, one of each of `KINDS`; none of them is the identity."""
    return save_adapters(tmp_path_factory.mktemp("adapters"), KINDS)


@contextmanager
def serving(base: Path, adapters: dict[str, Path], **options: Any) -> Iterator[Running]:
    modules = tuple(ReftModule(name, str(path)) for name, path in adapters.items())
    defaults: dict[str, Any] = {"port": 0, "served_model_name": BASE, "api_key": None, "log_level": "warning"}
    service = build(ServeSettings(str(base), modules=modules, **{**defaults, **options}))
    server = EmbeddedServer(service)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    pause = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if server.started or not thread.is_alive():
            break
        pause.wait(0.01)
    running = Running(server)
    try:
        yield running
    finally:
        # also after a test that failed in the midst of something
        running.brake.release()
        server.drain("end of test")
        thread.join(PATIENCE)
        service.stop(abort=True)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve(base: Path) -> Serve:
    """A server with options of its own, for one test."""

    def start(adapters: dict[str, Path] | None = None, **options: Any) -> AbstractContextManager[Running]:
        return serving(base, adapters or {}, **options)

    return start


@pytest.fixture(scope="module")
def running(base: Path, adapters: dict[str, Path]) -> Iterator[Running]:
    """A server with all adapters, for tests that leave it as it was."""
    with serving(base, adapters) as found:
        yield found


@pytest.fixture
def client(running: Running) -> OpenAI:
    return running.client()
