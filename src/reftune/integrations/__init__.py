"""ReFT in programs that train: TRL's scripts, axolotl, ms-swift, and whatever else runs in Python.

One module for each program, imported by itself only: none of them is a dependency.

Must not know: the command line, evaluation, serving.
"""
