"""Which samples the server remembers of a device, told at the start of a round."""

from dataclasses import dataclass
from typing import ClassVar

from flwr_slfac.split.features.base import CutFeature, register_feature


@register_feature
@dataclass(frozen=True)
class Recall(CutFeature):
    """Nothing is done to what crosses: a device that remembers others begins anew.

    Parameters
    ----------
    version : str (default: "")
        `SampleMemory.version` of what the server remembers; empty for nothing.
    order : str (default: "")
        How the server shuffles, see `known_samples`: a device that does it alike names
        no samples.
    """

    feature_id: ClassVar[str] = "recall"
    version: str = ""
    order: str = ""
