"""A server for tests of the page: no model, and fine-tuning as `docs/fine-tuning.md` describes it.

A job goes on by one step whenever it is asked for, so that nothing waits for the clock.

Must not know: the page's files.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from reftune.serving.cards import AdapterCard
from reftune.serving.page import attach_page

BASE = "SmolLM2"
STEPS = 12
PATIENCE = 30.0
GROUP = {"positions": "l1", "layers": [1, 2], "component": "block_output", "intervention": "loreft", "r": 4}


class Stub:
    """What it serves and was asked; tests look at it and change it."""

    def __init__(self, *, trains: bool = True, key: str | None = None) -> None:
        self.trains, self.key = trains, key
        self.answers: dict[str, str] = {}
        self.chats: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.adapters: dict[str, dict[str, Any]] = {}
        self.failure: str | None = None
        """What the next job fails with."""
        self.pace = 1
        """By how many steps a job goes on when it is asked for."""
        self.holds = False
        """Answers wait, and jobs stay where they are."""
        self.serve("emoji", job=None)

    def serve(self, name: str, *, job: str | None, **facts: Any) -> None:
        facts = {**dict.fromkeys(("training_file", "filename", "rows", "train_loss", "valid_loss")), **facts}
        known = {"id": name, "object": "reft.adapter", "loaded": True, "job": job, "created_at": 1_760_000_000}
        sizes = {"bytes": 51_234, "parameters": 9_216, "groups": [GROUP], "layers": [1, 2], "metadata": {}}
        self.adapters[name] = {**known, **sizes, **facts}

    def cards(self) -> dict[str, AdapterCard]:
        loaded = [name for name, found in self.adapters.items() if found["loaded"]]
        return {name: AdapterCard("d", (((0, "l1", "all"),),), ((1, 2),), (GROUP,)) for name in loaded}

    def go_on(self, job: dict[str, Any]) -> None:
        """By one step."""
        if self.holds or job["status"] in ("succeeded", "failed", "cancelled", "paused"):
            return
        step = job["progress"]["step"] or 0
        if job["status"] == "validating_files":
            job["status"] = "queued"
        elif job["status"] == "queued":
            job.update(status="running", queue_position=None)
        elif job["reft"].get("r") == 99 or (self.failure and step >= STEPS // 2):
            job.update(status="failed", error={"code": "x", "message": self.failure or "r=99", "param": None})
            self.tell(job, "message", self.failure or "r=99", level="error")
        elif step < STEPS:
            loss = 3.0 * 0.75**step + 0.2
            job["progress"].update(
                step=step + 1, epoch=(step + 1) / 2, train_loss=loss, tokens=80 * step, elapsed=step / 2
            )
            data = {"step": step + 1, "total_steps": STEPS, "train_loss": loss, "elapsed": step / 2}
            self.tell(job, "metrics", f"step {step + 1}", data=data)
            if step % 4 == 3:
                held = {"step": step + 1, "total_steps": STEPS, "valid_loss": loss + 0.15}
                self.tell(job, "metrics", "evaluation", data=held)
        else:
            name = f"ft:{BASE}:{job['suffix'] or ''}:{job['id'][-4:]}"
            job.update(status="succeeded", fine_tuned_model=name, finished_at=int(time.time()))
            self.serve(name, job=job["id"], rows=2, train_loss=0.31, filename="examples.jsonl")
            self.tell(job, "message", f"the adapter is served as {name}")

    def tell(self, job: dict[str, Any], kind: str, message: str, *, level: str = "info", data: Any = None) -> None:
        events = self.events[job["id"]]
        event = {"id": f"e{len(events)}", "object": "fine_tuning.job.event", "created_at": int(time.time())}
        events.insert(0, {**event, "type": kind, "message": message, "level": level, "data": data})


def refused(status: int, message: str, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": param, "code": None}}, status)


def listed(data: list[Any], request: Request) -> dict[str, Any]:
    """A page of it, as OpenAI pages."""
    after, limit = request.query_params.get("after"), int(request.query_params.get("limit", 20))
    begin = next((i + 1 for i, one in enumerate(data) if one["id"] == after), 0)
    return {"object": "list", "data": data[begin : begin + limit], "has_more": begin + limit < len(data)}


def make_app(stub: Stub) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def keyed(request: Request, call_next: Any) -> Response:
        guarded = request.url.path.startswith(("/v1", "/tokenize"))
        if guarded and stub.key and request.headers.get("authorization") != f"Bearer {stub.key}":
            return refused(401, "the API key is wrong")
        return await call_next(request)

    add_chat(app, stub)
    if stub.trains:
        add_jobs(app, stub)
        add_adapters(app, stub)
    attach_page(app, cards=lambda _: stub.cards())
    return app


def add_chat(app: FastAPI, stub: Stub) -> None:
    @app.get("/v1/models")
    async def models() -> Any:
        base: list[dict[str, Any]] = [{"id": BASE, "parent": None}]
        return {"data": base + [{"id": name, "parent": BASE} for name in stub.cards()]}

    @app.get("/v1/reft_adapters")
    async def cards() -> Any:
        return {"data": [{"id": name, **card.as_dict()} for name, card in stub.cards().items()]}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Any:
        body = await request.json()
        words = body["prompt"] if "prompt" in body else " ".join(turn["content"] for turn in body["messages"])
        texts = words.split(" ")
        return {"token_strs": texts, "tokens": list(range(len(texts))), "count": len(texts)}

    @app.post("/v1/completions")
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        stub.chats.append(body)
        if body["model"] not in {BASE, *stub.cards()}:
            return refused(404, f"the model {body['model']!r} does not exist")
        text = stub.answers.get(body["model"], f"I am {body['model']}")

        async def chunks() -> AsyncIterator[str]:
            for i, piece in enumerate(text.split(" ")):
                choice = {"text": piece} if "prompt" in body else {"delta": {"content": f"{' ' if i else ''}{piece}"}}
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                while stub.holds and not await request.is_disconnected():
                    await asyncio.sleep(0.01)
            yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")


def add_jobs(app: FastAPI, stub: Stub) -> None:
    @app.post("/v1/files")
    async def upload(request: Request) -> Any:
        form = await request.form()
        file: Any = form["file"]
        name = f"file-{len(stub.files)}"
        stub.files[name] = await file.read()
        return {"id": name, "object": "file", "bytes": len(stub.files[name]), "filename": file.filename}

    @app.post("/v1/fine_tuning/jobs")
    async def create(request: Request) -> Any:
        body = await request.json()
        if (body.get("reft") or {}).get("positions") == "x9":
            return refused(400, "positions='x9' is not valid; use f1+l1, l1, prompt, all, response", "reft")
        name = f"ftjob-{len(stub.jobs):04}"
        progress = {"step": 0, "total_steps": STEPS, "epoch": 0.0, "train_loss": None, "valid_loss": None}
        stub.events[name] = []
        stub.jobs[name] = {
            "id": name, "object": "fine_tuning.job", "model": BASE, "status": "validating_files", "error": None,
            "created_at": int(time.time()), "finished_at": None, "fine_tuned_model": None, "suffix": body.get("suffix"),
            "training_file": body["training_file"], "validation_file": body.get("validation_file"),
            "reft": {"r": 4, "positions": "l1", **(body.get("reft") or {})}, "method": body.get("method"),
            "progress": {**progress, "tokens": 0, "elapsed": 0.0}, "queue_position": 0, "body": body,
        }  # fmt: skip
        return stub.jobs[name]

    @app.get("/v1/fine_tuning/jobs")
    async def jobs(request: Request) -> Any:
        return listed(list(stub.jobs.values())[::-1], request)

    @app.get("/v1/fine_tuning/jobs/{name}")
    async def job(name: str) -> Any:
        for _ in range(stub.pace):
            stub.go_on(stub.jobs[name])
        return stub.jobs[name]

    @app.get("/v1/fine_tuning/jobs/{name}/events")
    async def events(name: str, request: Request) -> Any:
        return listed(stub.events[name], request)

    @app.post("/v1/fine_tuning/jobs/{name}/{what}")
    async def turn(name: str, what: str) -> Any:
        stub.jobs[name]["status"] = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}[what]
        return stub.jobs[name]

    @app.post("/v1/reft/preview")
    async def preview(request: Request) -> Any:
        body = await request.json()
        if (body.get("reft") or {}).get("positions") == "x9":
            return refused(400, "positions='x9' is not valid; use f1+l1, l1, prompt, all, response", "reft")
        return {"groups": [GROUP], "reft": {}, "has_more": False, "data": [shown(row) for row in body["rows"]]}

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        *before, answer = row["messages"]
        prompt = " ".join(turn["content"] for turn in before).split()
        tokens = prompt + answer["content"].split()
        edits = [[0] if i == len(prompt) - 1 else [] for i in range(len(tokens))]
        ids = list(range(len(tokens)))
        return {"row": 1, "ids": ids, "tokens": tokens, "prompt_length": len(prompt), "cut": 0, "edits": edits}


def add_adapters(app: FastAPI, stub: Stub) -> None:
    @app.get("/v1/reft/adapters")
    async def adapters() -> Any:
        return {"object": "list", "data": list(stub.adapters.values())}

    @app.post("/v1/reft/adapters/{name:path}/load")
    @app.post("/v1/reft/adapters/{name:path}/unload")
    async def load(name: str, request: Request) -> Any:
        stub.adapters[name]["loaded"] = request.url.path.endswith("/load")
        return stub.adapters[name]

    @app.get("/v1/reft/adapters/{name:path}/download")
    async def download(name: str) -> Any:
        return Response(b"PK" + name.encode(), media_type="application/zip")

    @app.delete("/v1/reft/adapters/{name:path}")
    async def delete(name: str) -> Any:
        del stub.adapters[name]
        return {"id": name, "deleted": True}


@contextmanager
def running(stub: Stub) -> Iterator[str]:
    """The address of the server while it runs."""
    server = uvicorn.Server(uvicorn.Config(make_app(stub), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        stub.holds = False
        server.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()
