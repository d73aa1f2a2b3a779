"""Adapters from other libraries and for them, and adapters combined.

Each format has a file that reads or writes it; `parts` holds what they have in common.  What cannot be exact is
refused by name.

Must not know: training, serving, the command line.
"""
