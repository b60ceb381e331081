"""The report of a run: one HTML page that needs nothing but itself, and its key results as text for a terminal.

It shows what training and evaluation left in the run folder and computes nothing anew. `run.py` reads the folder;
`results.py`, `curves.py` and `page.py` make plain data of it, `fastssl.evaluate` says what there is to show of each
evaluation; the templates make that a page. All markup is theirs, and they escape all text.
"""

from fastssl.report.page import write_report
from fastssl.report.terminal import summary_table

__all__ = ["summary_table", "write_report"]
