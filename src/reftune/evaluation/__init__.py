"""Evaluation: benchmark tasks, runners, comparisons of methods, reports.

Must not know: the command line, serving.
"""
