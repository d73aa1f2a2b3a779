"""A judge on this machine: an OpenAI-compatible server whose verdicts, delays and failures a test chooses.

Must not know: how the judge is asked, but for the tags around the texts.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Asked:
    """One request."""

    path: str
    headers: Message
    """By name, in capitals or not."""
    body: dict[str, Any]
    number: int
    """How many requests of the same content came before."""

    @property
    def texts(self) -> tuple[str, str, str]:
        """Instruction, first answer, second answer."""
        prompt = self.body["messages"][-1]["content"]
        found = [
            re.search(rf"<{tag}>\n(.*)\n</{tag}>", prompt, re.S) for tag in ("instruction", "answer-1", "answer-2")
        ]
        first, second, third = (match[1] for match in found if match)
        return first, second, third


@dataclass(frozen=True)
class Answered:
    """Anything that is no proper reply."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    """Close the connection without a word."""
    cut: bool = False
    """Promise more bytes than come."""


Answer: TypeAlias = "Callable[[Asked], str | Answered]"


def completion(text: str | None, finish: str = "stop") -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice]})


@dataclass
class JudgeServer:
    answer: Answer
    port: int = 0
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args: Any) -> None:
        """Clients that are killed leave broken pipes."""


@contextmanager
def serving(answer: Answer) -> Iterator[JudgeServer]:
    judge = JudgeServer(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
            with lock:
                number = sum(asked.body == body for asked in judge.asked)
                asked = Asked(self.path, self.headers, body, number)
                judge.asked.append(asked)
            answered = judge.answer(asked)
            if isinstance(answered, str):
                answered = Answered(body=completion(answered))
            if answered.hang_up:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = answered.body.encode()
            self.send_response(answered.status)
            headers = {"Content-Type": "application/json", **answered.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + 100 * answered.cut))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

        def log_message(self, *args: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    judge.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def prefers_longer(asked: Asked) -> str:
    """A judge without a bias of position."""
    _, first, second = asked.texts
    return "tie" if len(first) == len(second) else "1" if len(first) > len(second) else "2"
