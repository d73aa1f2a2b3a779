"""`python -m reftune.evaluation.lm_eval`: the harness's command line with the model `reftune`."""

from __future__ import annotations

import os
import sys

from ...errors import ReftuneError
from . import main

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ReftuneError as error:
        if os.environ.get("REFTUNE_DEBUG"):
            raise
        sys.exit(f"reftune: {error}")
