"""What an adapter does: where it edits and how much (`edits`), in which direction (`directions`), to what effect
(`effect`), and what of it matters (`matters`); all of it on a `Probe`, a model whose edits can be switched off in part.

`against` holds two adapters side by side, whatever their methods.

Rows are dicts, which `pandas.DataFrame(rows)` makes a table of; `picture` and `page` draw them.

Must not know: the command line, training.
"""

from .against import Trace, cka, compared, same_answers, traced
from .directions import Lens, basis_rows, edit_rows
from .edits import Sizes, edit_sizes
from .effect import along_layers, next_tokens
from .matters import patch, smallest_set, switched_off
from .probe import Probe
from .prune import save_pruned
from .switches import EditSite, Switch, Text
from .texts import text_of

__all__ = [
    "EditSite",
    "Lens",
    "Probe",
    "Sizes",
    "Switch",
    "Text",
    "Trace",
    "along_layers",
    "basis_rows",
    "cka",
    "compared",
    "edit_rows",
    "edit_sizes",
    "next_tokens",
    "patch",
    "same_answers",
    "save_pruned",
    "smallest_set",
    "switched_off",
    "text_of",
    "traced",
]
