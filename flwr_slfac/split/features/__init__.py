"""Features of what crosses the cut. A new one is a file here and a line below."""

from flwr_slfac.split.features.base import (
    CutFeature,
    Passage,
    ServerMemory,
    feature_fields,
    feature_of,
    passages,
    register_feature,
)
from flwr_slfac.split.features.dropout import Dropout

__all__ = [
    "CutFeature",
    "Dropout",
    "Passage",
    "ServerMemory",
    "feature_fields",
    "feature_of",
    "passages",
    "register_feature",
]
