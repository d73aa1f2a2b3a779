"""What any report needs, and nothing of what one says: parts of a page (`blocks`), its two forms (`html`, `markdown`)
and the files (`write`), pictures in the page's colours (`svg`), numbers as people read them, the machine.

Matplotlib is in the extra `report`; `write` and `svg` are imported once `check_report` has found it.

Must not know: results, methods, tasks.
"""

from .write import check_report, write_page

__all__ = ["check_report", "write_page"]
