"""Cut a model at a named module, see where it may be cut, join it again.

::

    model ──trace_model──► Trace: a copy, and the Flow of data in either mode
    Trace ──plan_cut──► Sides: which nodes run on which side, or why no cut is legal
    Trace, Sides ──build_halves──► two Half modules ──► Halves.load ──► model
    model, Halves ──prove, on an example──► the same bits, or why not
"""

from flwr_slfac.cutting.between import cut_between
from flwr_slfac.cutting.build import Half
from flwr_slfac.cutting.flow import Flow
from flwr_slfac.cutting.halves import CutPoint, Halves, cut, legal_cuts
from flwr_slfac.cutting.names import call_name
from flwr_slfac.cutting.trace import Trace, trace_model

__all__ = [
    "CutPoint",
    "Flow",
    "Half",
    "Halves",
    "Trace",
    "call_name",
    "cut",
    "cut_between",
    "legal_cuts",
    "trace_model",
]
