"""Evaluation of one model: benchmark tasks and their scores, judges, lm-evaluation-harness.

Must not know: the command line, serving, comparisons.
"""
