"""Run by Python as it starts in a command of `reftune with`: when PEFT is imported, reftune is imported after it.

Whatever Python this is, it may have no reftune, or never import PEFT: then nothing changes.

Must not know: reftune, until PEFT is there.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


class _AfterPeft(importlib.abc.MetaPathFinder):
    """Finds `peft` as it would be found anyway, and adds to what its loader does."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "peft":
            return None
        # who only asks whether there is a PEFT is answered too, and the hook stays
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, own):
        self.own = own

    def create_module(self, spec):
        return self.own.create_module(spec)

    def exec_module(self, module):
        # from here on it is PEFT's own, for whoever looks for the files of the package
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        module.__loader__ = self.own
        self.own.exec_module(module)
        try:
            import reftune  # noqa: F401, PLC0415
        except Exception as error:  # noqa: BLE001 — the command is not ours: it says itself what it lacks then
            sys.stderr.write(f"reftune with: {sys.executable} cannot import reftune ({error}); PEFT has no ReFT here\n")


def _next_one():
    """The sitecustomize that would have run without this one."""
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


sys.meta_path.insert(0, _AfterPeft())
_next_one()
