"""Methods side by side: a comparison as it is asked for (`study`), its runs (`compare`, and `worker` for one), and what
is told of them (`report/`).

Must not know: the command line, serving.
"""
