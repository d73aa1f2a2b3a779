"""Makes the README's pictures from what the commands print: `python scripts/pictures.py [ADAPTER]`.

Runs `reftune demo` unless an adapter of it is named, in which case only the picture of `reftune show` is made.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent.parent / "docs" / "img"
WIDTH = 100


def picture(name: str, *arguments: str) -> None:
    """Run a command and write its output, colours included, as docs/img/NAME.svg."""
    programs = Path(sys.executable).parent
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "PATH": path}
    command = [str(programs / "reftune"), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text.from_ansi(f"$ reftune {' '.join(arguments)}\n{done.stdout}"))
    PICTURES.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(PICTURES / f"{name}.svg"), title=f"reftune {arguments[0]}")


def main() -> None:
    adapter = sys.argv[1] if len(sys.argv) > 1 else "reftune-demo"
    if len(sys.argv) == 1:
        picture("demo", "demo", "--output", adapter)
    picture("show", "show", adapter)


if __name__ == "__main__":
    main()
