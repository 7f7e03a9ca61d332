"""A feature of what crosses the cut: a device's end, a server's end, a null form.

::

    device                                     server
    front -> f1.send -> f2.send -> codec ====> codec -> f2.receive -> f1.receive -> back
    graph <----------------------- codec <==== codec <- f2.select <- f1.select <--- back

Both ends derive the same `Passage` from the feature, the shape of the activations and
the moment, so that what it draws at random does not cross.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.lightweight.pruning import CutMask
from flwr_slfac.split.place import Moment

Shape = tuple[int, ...]


class ServerMemory:
    """What the server remembers of a feature during a run; the null form: nothing."""

    def end_step(self) -> None:
        """Take note that all devices' smashed data of a step were trained on."""

    def forget(self, device: int) -> None:
        """Forget what a device sent in this step, by partition id: it is at fault."""

    def state(self) -> dict[str, Any]:
        """Return, between rounds, what it remembers; all attributes by default."""
        return dict(vars(self))

    def load(self, state: Mapping[str, Any]) -> None:
        """Remember what `state` returned."""
        vars(self).update(state)


class Passage:
    """The way of one batch through a feature; the null form: nothing is done.

    Parameters
    ----------
    shape : tuple of int
        Of what comes out of `send`.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def send(self, activations: torch.Tensor) -> torch.Tensor:
        """Return what the device sends; differentiable, part of the front's graph."""
        return activations

    def receive(
        self, sent: torch.Tensor, memory: Any, channels: CutMask
    ) -> torch.Tensor:
        """Return, on the server, activations of the shape that `send` was given.

        Parameters
        ----------
        sent : Tensor of shape `shape`
            What `send` returned, as the codec brought it.
        memory : ServerMemory
            What `CutFeature.memory` returned at the start of the run.
        channels : CutMask
            Which channels of the smashed data the device computes.
        """
        return sent

    def select(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the part of the server's gradient that goes down, of shape `shape`.

        The device's graph applies the derivative of `send`, so it is not applied here.
        """
        return gradient


class CutFeature:
    """A feature of what crosses; this null form does nothing.

    A subclass is a frozen dataclass of JSON's values, decorated with
    `register_feature`: its fields travel to the device at the start of a round.

    Attributes
    ----------
    feature_id : str
        Its name in messages; never used for something else.
    in_evaluation : bool (default: False)
        Whether test batches go through it too.
    moves_places : bool (default: False)
        Whether what is sent lies at other places at each step, so that no codec can
        keep a residual by place.
    """

    feature_id: ClassVar[str] = ""
    in_evaluation: ClassVar[bool] = False
    moves_places: ClassVar[bool] = False

    def passage(self, shape: Shape, moment: Moment) -> Passage:
        """Return a batch's way through the feature, the same at both ends.

        Parameters
        ----------
        shape : tuple of int
            Of the activations that go in, the batch first.
        moment : Moment
            What randomness is a function of.
        """
        return Passage(shape)

    def memory(self) -> ServerMemory:
        """Return what the server is to remember of it during a run."""
        return ServerMemory()


_REGISTRY: dict[str, type[CutFeature]] = {}
F = TypeVar("F", bound=type[CutFeature])


def register_feature(cls: F) -> F:
    """Make a feature known by its `feature_id`, so that it can travel.

    Raises
    ------
    SettingError
        If it is no frozen dataclass, or its id is empty or taken.
    """
    if not dataclasses.is_dataclass(cls) or not cls.feature_id:
        raise SettingError(f"{cls.__name__} must be a dataclass with a feature_id")
    other = _REGISTRY.setdefault(cls.feature_id, cls)
    if other is not cls:
        raise SettingError(
            f"feature id {cls.feature_id!r} of {cls.__name__} is taken by "
            f"{other.__name__}"
        )
    return cls


def feature_fields(feature: CutFeature) -> tuple[str, dict[str, Any]]:
    """Return the id and the fields of a registered feature, as they travel.

    Raises
    ------
    SettingError
        If it is not registered.
    """
    if _REGISTRY.get(feature.feature_id) is not type(feature):
        raise SettingError(
            f"{type(feature).__name__} is not registered: decorate it with "
            "flwr_slfac.split.register_feature"
        )
    return feature.feature_id, dataclasses.asdict(feature)  # type: ignore[call-overload]


def feature_of(feature_id: str, fields: Mapping[str, Any]) -> CutFeature:
    """Return the feature of this id and these fields.

    Raises
    ------
    DecodeError
        If no such feature is registered here, or the fields are not its own.
    """
    if feature_id not in _REGISTRY:
        raise DecodeError(
            f"the server asks for the feature {feature_id!r}, which is not known here; "
            "import the module that registers it where the ClientApp is made"
        )
    try:
        return _REGISTRY[feature_id](**fields)
    except (TypeError, ValueError) as error:
        raise DecodeError(
            f"the fields of the feature {feature_id!r} are {dict(fields)}: {error}"
        ) from error


def passages(
    features: Sequence[CutFeature], shape: Shape, moment: Moment
) -> list[Passage]:
    """Return a batch's way through all features, in the order of sending."""
    ways = []
    for feature in features:
        way = feature.passage(shape, moment)
        shape = way.shape
        ways.append(way)
    return ways
