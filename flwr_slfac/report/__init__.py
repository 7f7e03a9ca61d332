"""What a run came to: a line a round, hooks that are told of it, a page to look at.

::

    SplitFed ──► RoundReport ──► Callback (TensorBoard, yours)
       └─ write(folder) ──► rounds.json, traffic.csv
                             └─ python -m flwr_slfac.report FOLDER ──► report.html
"""

from flwr_slfac.report.page import Page, Plot, Table, write_page
from flwr_slfac.report.rounds import (
    Callback,
    DeviceCost,
    RoundReport,
    TensorBoard,
    bytes_by_direction,
    readable_bytes,
    table_head,
)
from flwr_slfac.report.run_page import run_page

__all__ = [
    "Callback",
    "DeviceCost",
    "Page",
    "Plot",
    "RoundReport",
    "Table",
    "TensorBoard",
    "bytes_by_direction",
    "readable_bytes",
    "run_page",
    "table_head",
    "write_page",
]
