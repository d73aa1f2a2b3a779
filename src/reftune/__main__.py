"""`python -m reftune`: the command line."""

from __future__ import annotations

from reftune.cli import main

if __name__ == "__main__":
    main()
