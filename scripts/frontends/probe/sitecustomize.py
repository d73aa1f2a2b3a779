"""Run by Python as it starts: writes which tokens reftune takes for prompts, of every call that trains, to REFT_PROBE.

Each line is a row of a batch: its ids, its labels, and [start, end, stop] of each of its prompts.
"""

import importlib.abc
import importlib.util
import json
import os
import sys

MODULE = "reftune.tuner.watch"


class _Watching(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        self.own, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.own.create_module(spec)

    def exec_module(self, module):
        self.own.exec_module(module)
        real = module.open_frame

        def open_frame(role, state, outer, given):
            import torch  # noqa: PLC0415

            frame = real(role, state, outer, given)
            ids, found = given.get("input_ids"), frame.segments
            if torch.is_grad_enabled() and found is not None and ids is not None and not outer.generating:
                write(ids, outer.labels, found, frame.unknown)
            return frame

        module.open_frame = open_frame


def write(ids, labels, found, unknown):
    spans = list(zip(*(t.tolist() for t in (found.rows, found.start, found.end, found.stop)), strict=True))
    with open(os.environ["REFT_PROBE"], "a", encoding="utf-8") as file:
        for i, row in enumerate(ids.tolist()):
            own = [list(span[1:]) for span in spans if span[0] == i]
            of_row = None if labels is None else labels[i].tolist()
            file.write(json.dumps({"ids": row, "labels": of_row, "prompts": own, "unknown": unknown}) + "\n")


if os.environ.get("REFT_PROBE"):
    sys.meta_path.insert(0, _Watching())
