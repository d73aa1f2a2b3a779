"""What an edit does and how much it holds: memorisation, as in appendix F of the paper; `explain`, which
opens a trained adapter.

Must not know: the command line, serving, comparisons.
"""
