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
from flwr_slfac.split.features.cut_name import CutName, named, require_cut
from flwr_slfac.split.features.dropout import Dropout
from flwr_slfac.split.features.recall import Recall
from flwr_slfac.split.features.usual import Usual

__all__ = [
    "CutFeature",
    "CutName",
    "Dropout",
    "Passage",
    "Recall",
    "ServerMemory",
    "Usual",
    "feature_fields",
    "feature_of",
    "named",
    "passages",
    "register_feature",
    "require_cut",
]
