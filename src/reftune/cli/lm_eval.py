"""`reftune lm-eval`: the command line of lm-evaluation-harness, with ReFT adapters."""

from __future__ import annotations

import typer

from ..evaluation.lm_eval import main

__all__ = ["lm_eval"]

EXAMPLE = """Run EleutherAI's lm-evaluation-harness with the model reftune.

Examples:

    reftune lm-eval --model reftune --model_args pretrained=smollm2,adapter=my-adapter
    --tasks arc_easy --batch_size 8 --output_path scores

All arguments are the harness's; reftune lm-eval run --help tells them.
"""


def lm_eval(context: typer.Context) -> None:
    main(context.args)


lm_eval.__doc__ = EXAMPLE
