"""Where the server takes a device to be cut, told at the start of a round."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from flwr_slfac.errors import SettingError
from flwr_slfac.split.features.base import CutFeature, register_feature


@register_feature
@dataclass(frozen=True)
class CutName(CutFeature):
    """Nothing is done to what crosses: a device that is cut elsewhere refuses.

    Weights and shapes are the same before a ReLU and behind it: halves of two such
    cuts would train another model, or one activation twice.

    Parameters
    ----------
    after : str (default: "")
        The outermost module that ends at the cut, as `cut` names it.
    """

    feature_id: ClassVar[str] = "cut-name"
    after: str = ""


def named(features: Sequence[CutFeature], back: nn.Module) -> tuple[CutFeature, ...]:
    """Return the features with the name of the cut that a back begins at, if it tells.

    Parameters
    ----------
    features : sequence of CutFeature
        Those of all; another name among them is replaced.
    back : nn.Module
        What runs behind the cut: the back, or a device's layers before it.
    """
    own = tuple(f for f in features if not isinstance(f, CutName))
    after = getattr(back, "begins_after", "")
    return (*own, CutName(after)) if after else own


def require_cut(features: Sequence[CutFeature], front: nn.Module, who: str) -> None:
    """Refuse a front that ends at another cut than the server's back begins at.

    Parameters
    ----------
    features : sequence of CutFeature
        What the server tells.
    front : nn.Module
        The device's; one that was not made by `cut` does not tell where it ends.
    who : str
        Whose front it is, for the error.

    Raises
    ------
    SettingError
        If it does.
    """
    ends = getattr(front, "ends_after", "")
    for feature in features:
        if isinstance(feature, CutName) and ends not in ("", feature.after):
            raise SettingError(
                f"the front of {who} ends after {ends}, and what the server runs "
                f"begins after {feature.after}; cut the same model at the same module "
                "on both sides"
            )
