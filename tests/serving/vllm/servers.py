"""`reftune serve`, on vLLM or on transformers, as a process of its own, for tests.

Must not know: what is asked of it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.serving.vllm.engines import ENVIRONMENT
from tests.serving.vllm.worlds import World, make_world, tiny_llama
from tests.training.text_models import SPECIAL, WORDS, word_tokenizer

BASE = "tiny"


def text_world(folder: Path) -> World:
    """A world whose base model has a tokenizer and a chat template."""
    world = make_world(folder, tiny_llama(vocab_size=len(SPECIAL) + len(WORDS), bos_token_id=1, eos_token_id=2))
    word_tokenizer().save_pretrained(world.base)
    return world


def loading_from(folder: Path) -> tuple[str, ...]:
    """Flags of a server that loads adapters from a folder at run time."""
    return "--reft-allow-runtime-loading", "--reft-adapter-folder", str(folder)


@contextmanager
def served(world: World, names: Sequence[str], log: Path, *more: str, backend: str = "vllm") -> Iterator[str]:
    """The address of a server, which is stopped in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "reftune", "serve", world.base, "--served-model-name", BASE, "--port", str(port)]
    command += ["--backend", backend, "--dtype", "float32", "--max-model-len", "256"]
    command += ["--enforce-eager", "--block-size", "32"] if backend == "vllm" else []
    command += ["--max-num-seqs", "8", *more, "--reft-modules", *(f"{name}={world.path(name)}" for name in names)]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_for(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"no server after {seconds} s: {log.read_text()[-3000:]}")
