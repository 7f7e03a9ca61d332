"""How activations were mostly coded, told at the start of a round."""

from dataclasses import dataclass
from typing import ClassVar

from flwr_slfac.split.features.base import CutFeature, register_feature


@register_feature
@dataclass(frozen=True)
class Usual(CutFeature):
    """Nothing is done to what crosses: an encoder need not try what others have.

    Parameters
    ----------
    choice : str (default: "")
        See `Codec.usual`; empty for nothing.
    """

    feature_id: ClassVar[str] = "usual"
    choice: str = ""
