"""Mixed requests to an engine whose processes need an environment of their own; prints which answers were wrong.

Arguments: folder of a world, JSON of requests, JSON of wanted answers, JSON of arguments of the engine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.serving.vllm.engines import ask, close, engine
from tests.serving.vllm.worlds import World

if __name__ == "__main__":
    folder, asked, wanted, arguments = sys.argv[1:]
    requests = [(tuple(prompt), name) for prompt, name in json.loads(Path(asked).read_text())]
    names = sorted({name for _, name in requests if name})
    world = World(Path(folder), None, names)
    llm = engine(world, **json.loads(arguments))
    found = ask(llm, world, requests)
    info = llm.collective_rpc("reft_info")
    close(llm)
    wrong = [
        [len(p), n]
        for (p, n), a, b in zip(requests, found, json.loads(Path(wanted).read_text()), strict=True)
        if a != b
    ]
    print("RESULT", json.dumps({"wrong": wrong, "info": info}))
