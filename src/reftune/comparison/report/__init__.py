"""The page of a comparison: `results.json` → `report.md` and `report.html`, which needs nothing from elsewhere.

`results` (the file, checked), `summary` (means, intervals, who leads), `notes` (what a reader must keep in mind),
`published` (the paper's numbers), `content` and `tables` (what the page says), `scatter`, `curves`, `canvas`, `labels`
(its pictures), `write`.  Matplotlib is in the extra `report`; `write` imports what needs it when it is called.

Must not know: how runs are done.
"""

from .results import Results, read_results
from .write import write_report

__all__ = ["Results", "read_results", "write_report"]
