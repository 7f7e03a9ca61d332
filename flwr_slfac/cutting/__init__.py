"""Cut a model at a named module, see where it may be cut, join it again."""

from flwr_slfac.cutting.halves import CutPoint, Halves, cut, legal_cuts

__all__ = ["CutPoint", "Halves", "cut", "legal_cuts"]
