"""The page of a comparison: `results.json` → `report.md` and `report.html`, which needs nothing from elsewhere.

`results` (the file, checked), `summary` (means, intervals, who leads), `notes` (what a reader must keep in mind),
`published` (the paper's numbers), `content` and `tables` (what the page says), `scatter`, `curves`, `canvas`, `labels`,
`svg` (its pictures), `html` and `markdown` (two ways to write it down), `write`.  Matplotlib is in the extra `report`;
`write` imports what needs it when it is called.

Must not know: how runs are done.
"""

from .results import Results, read_results
from .write import check_report, write_report

__all__ = ["Results", "check_report", "read_results", "write_report"]
