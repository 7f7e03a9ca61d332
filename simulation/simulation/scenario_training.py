"""What a scenario trains: ``[training]``, ``[model]`` and ``[data]``."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr_slfac import Lightweight, SettingError
from flwr_slfac.codec import as_codec
from flwr_slfac.split import SCHEMES
from simulation.adaptation import require_choice
from simulation.functions import require_function
from simulation.numbers import require_at_least, require_between, require_positive
from simulation.sampling import require_policy
from simulation.typed_texts import typed

PARTITIONS = ("iid", "dirichlet", "shard", "natural", "drawn")


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Parameters
    ----------
    scheme : {"sequential", "sflv1", "sflv2", "parallel"}
        As in `flwr_slfac.split`.
    num_rounds, num_steps, batch_size : int
        Rounds, steps a round, examples a step; a device with less data takes fewer.
    devices_per_round : int
        How many of the devices are sampled; 0 for all.
    sampling : {"random", "speed", "data", "oort"} or str
        By what they are, or ``module:function`` of one's own; see `sampling`.
    waits : {"lockstep", "arrival"}
        As in `simulation.clock.Clock`; what is trained for real runs in lock-step.
    cut : str
        The module after which the model is cut.
    device_cuts : str
        ``"none"`` for one cut for all; ``"fastest"``, or ``module:function`` of one's
        own, for cuts of devices' own, none behind `cut`: see `cut_choice`.
    device_codecs, device_batches, device_pruning : str
        ``"none"`` for the same for all; ``"alike"``, or ``module:function`` of one's
        own, so that slow devices code more coarsely, take smaller batches or leave out
        more channels: see `adaptation`.
    period : str
        ``"none"`` to average fronts at a round's end, or as `lightweight` says;
        ``"alike"``, or ``module:function`` of one's own, for means within a round as
        often as they cost little: see `device_choices`.
    learning_rate, momentum : float
        Of SGD, on both sides; the rate falls to 0 over the rounds, by a cosine.
    codec_up, codec_down : str
        As `flwr_slfac.codec.parse_codec` reads them; empty for the package's defaults.
    lightweight : str
        Settings of `flwr_slfac.Lightweight`: ``"prune=0.3 gradient_bits=8"``.
    evaluate_every : int
        Rounds between two tests of the joined model on the server.

    Raises
    ------
    SettingError
        If a name is not known or a number is out of range.
    """

    scheme: str = "parallel"
    num_rounds: int = 1
    num_steps: int = 10
    batch_size: int = 32
    devices_per_round: int = 0
    sampling: str = "random"
    waits: str = "lockstep"
    cut: str = "layer1"
    device_cuts: str = "none"
    device_codecs: str = "none"
    device_batches: str = "none"
    device_pruning: str = "none"
    period: str = "none"
    learning_rate: float = 0.1
    momentum: float = 0.9
    codec_up: str = ""
    codec_down: str = ""
    lightweight: str = ""
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise SettingError(
                f"scheme {self.scheme!r} is not known; use one of {', '.join(SCHEMES)}"
            )
        if self.waits not in ("lockstep", "arrival"):
            raise SettingError(f"waits is {self.waits!r}; use 'lockstep' or 'arrival'")
        for name in ("num_rounds", "num_steps", "batch_size", "evaluate_every"):
            require_positive(name, getattr(self, name))
        require_at_least("devices_per_round", self.devices_per_round, 0)
        require_positive("learning_rate", self.learning_rate)
        require_between("momentum", self.momentum, 0, 1)
        require_policy(self.sampling)
        require_function("device_cuts", self.device_cuts, ("none", "fastest"))
        if self.device_cuts != "none" and self.lightens:
            raise SettingError(
                "device_cuts does not go together with lightweight, device_pruning or "
                "period yet; set one of them"
            )
        if self.period != "none" and "aggregate_every" in self.lightweight:
            raise SettingError(
                "period chooses aggregate_every, which lightweight says, too; set one"
            )
        for name in ("device_codecs", "device_batches", "device_pruning", "period"):
            require_choice(name, getattr(self, name))
        for name in ("codec_up", "codec_down"):
            if text := getattr(self, name):
                _named(name, lambda text=text: as_codec(text))
        _named("lightweight", self.make_lightweight)

    @property
    def lightens(self) -> bool:
        """Whether training is lightweight."""
        return bool(self.lightweight or {self.device_pruning, self.period} != {"none"})

    def make_lightweight(
        self,
        prune: Callable[..., float] | None = None,
        aggregate_every: int | None = None,
    ) -> Lightweight | None:
        """Return what `lightweight` says; None if that is nothing.

        Parameters
        ----------
        prune, aggregate_every : callable and int, optional
            In place of what it says of them.

        Raises
        ------
        SettingError
            If it cannot be read, or a setting is refused.

        Examples
        --------
        >>> Training(lightweight="prune=0.3 gradient_bits=8").make_lightweight().prune
        0.3
        """
        settings: dict[str, Any] = {}
        for part in shlex.split(self.lightweight):
            name, equals, value = part.partition("=")
            if not equals or name not in Lightweight.__dataclass_fields__:
                known = ", ".join(Lightweight.__dataclass_fields__)
                raise SettingError(f"{part!r} is no NAME=VALUE with one of {known}")
            settings[name] = typed(value)
        if prune is not None:
            settings["prune"] = prune
        if aggregate_every is not None:
            settings["aggregate_every"] = aggregate_every
        return Lightweight(**settings) if settings else None


@dataclass(frozen=True)
class Model:
    """Which model.

    Parameters
    ----------
    build : str
        ``module:function`` that returns an `nn.Module`.
    input_shape : tuple of int
        Of one example.
    """

    build: str = "simulation.reference:small_resnet"
    input_shape: tuple[int, ...] = (3, 32, 32)

    def __post_init__(self) -> None:
        if self.build.count(":") != 1:
            raise SettingError(f"build is {self.build!r}; give 'module:function'")
        if not self.input_shape or any(size < 1 for size in self.input_shape):
            raise SettingError(f"input_shape is {self.input_shape}; give sizes above 0")


@dataclass(frozen=True)
class Data:
    """On what, and who has which part of it.

    Parameters
    ----------
    source : str
        ``"digits"`` of scikit-learn; the path of an ``.npz`` with ``x`` (images,
        N x C x H x W or N x H x W x C, of 8 bits or floats), ``y`` (classes) and, for
        natural partitions, further columns; of a folder of idx files (MNIST's form);
        of a folder with a folder of images for each class, whose inner folders are the
        column ``folder``; or ``hub:NAME``, a data set of the Hugging Face hub, all its
        splits. Paths are relative to the scenario's folder and may name variables of
        the environment: ``"$SLFAC_DATA_DIR/mnist"``.
    partition : {"iid", "dirichlet", "shard", "natural", "drawn"}
        As flwr-datasets' partitioners deal out; ``drawn``: every device draws its own,
        so that there may be more devices than data.
    alpha : float
        Of ``dirichlet``: smaller is more unlike.
    shards : int
        Of ``shard``: how many of the sorted data a device has; what fills no whole
        shard is nobody's.
    by : str
        Of ``natural``: the column whose values are the devices.
    per_device : int
        Of ``drawn``: how many examples a device draws.
    test_share : float
        Held back for the test on the server, in (0, 1).

    Raises
    ------
    SettingError
        If a name is not known or a number is out of range.
    """

    source: str = "digits"
    partition: str = "iid"
    alpha: float = 1.0
    shards: int = 2
    by: str = ""
    per_device: int = 64
    test_share: float = 0.2

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise SettingError(
                "source is empty; give 'digits', a path, or 'hub:' and a name"
            )
        if self.partition not in PARTITIONS:
            raise SettingError(
                f"partition is {self.partition!r}; use one of {', '.join(PARTITIONS)}"
            )
        require_positive("alpha", self.alpha)
        require_positive("shards", self.shards)
        require_at_least("per_device", self.per_device, 2)
        if not 0 < self.test_share < 1:
            raise SettingError(
                f"test_share is {self.test_share}; give a number between 0 and 1"
            )
        if (self.partition == "natural") != bool(self.by):
            raise SettingError(
                f"by is {self.by!r} and partition {self.partition!r}; natural "
                "partitions need the name of a column, others none"
            )


def _named(name: str, make: Any) -> None:
    """Call `make`; name the key in what it refuses."""
    try:
        make()
    except (SettingError, TypeError) as error:
        raise SettingError(f"{name}: {error}") from error
