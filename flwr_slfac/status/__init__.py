"""How a run stands while it runs: a line in the log, Prometheus metrics, a terminal.

::

    FlowerRounds ──► RunStatus ──now()──► Status ─┬─► progress.py   a line every 10 s
    Carrier, Traffic ◄──looks at──┘               └─► StatusPage    /metrics, loopback
                                                        ▲
                      python -m flwr_slfac.status ──────┘  a table in a terminal
"""

from flwr_slfac.status.page import StatusPage
from flwr_slfac.status.run_status import RunStatus
from flwr_slfac.status.status import DeviceStatus, Phase, Status

__all__ = ["DeviceStatus", "Phase", "RunStatus", "Status", "StatusPage"]
