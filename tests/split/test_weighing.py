"""A codec that wants the activations of a gradient is given those, as decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.optim import SGD

from flwr_slfac import Device, DeviceCuts, Lightweight
from flwr_slfac.codec import Codec, Feedback, Float16, Hints, register
from flwr_slfac.codec.base import Memory
from flwr_slfac.codec.plain import Identity
from flwr_slfac.codec.wire import Frame
from flwr_slfac.split import ServerHalf, train_locally
from tests.split import builders

SEEN: list[tuple[torch.Tensor, torch.Tensor | None]] = []


@register
@dataclass(frozen=True)
class Looking(Codec):
    """Codes like `Identity`, and looks at what it is told."""

    codec_id: ClassVar[str] = "test-looking"

    @property
    def wants_activations(self) -> bool:
        """Activations serve it."""
        return True

    def encode_sections(
        self, tensor: torch.Tensor, hints: Hints
    ) -> Sequence[bytes | memoryview]:
        """Take note."""
        SEEN.append((tensor.clone(), hints.activations))
        return Identity().encode_sections(tensor, hints)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Do as `Identity`."""
        return Identity.decode_sections(frame, memory, device)


class Scaled(nn.Module):
    """A back whose gradient is as its input: half the sum of squares is its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return twice the input, in place, as users' backs may begin."""
        return x.mul_(2.0) * self.factor


def half_squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradient by outputs is outputs over examples."""
    return outputs.square().sum() / 2 / len(targets)


def still(parameters: Any) -> SGD:
    """Return an optimizer that changes nothing."""
    return SGD(parameters, lr=0.0)


def run(down: Codec, scheme: str = "parallel", **settings: Any) -> None:
    """Train two rounds of two devices."""
    SEEN.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Scaled())
    front, back = model[:3], nn.Sequential(model[3])
    if "cuts" in settings:
        settings["cuts"] = DeviceCuts(model, "2", {0: "0"}, still)
    devices = builders.devices(front, [16, 24], optimizer=still)
    if "cuts" in settings:
        devices[0] = Device(
            model[:1], optimizer=still, train_set=builders.data(16), batch_size=8
        )
    server = ServerHalf(back, half_squares, still, scheme=scheme)  # type: ignore[arg-type]
    train_locally(
        devices,
        front.state_dict(),
        server,
        num_rounds=2,
        up=Float16(),
        down=down,
        evaluate=False,
        **settings,
    )


@pytest.mark.parametrize(
    ("down", "settings"),
    [
        (Looking(), {}),
        (Feedback(Looking()), {}),
        (Looking(), {"pipeline_depth": 1}),
        (Looking(), {"codec_threads": 2}),
        (Looking(), {"lightweight": Lightweight(activation_dropout=0.4)}),
        (Looking(), {"lightweight": Lightweight(prune=0.5, criterion="increase")}),
        (
            Looking(),
            {"lightweight": Lightweight(prune=[0.5, 0.0], activation_dropout=0.4)},
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["sequential", "sflv1", "sflv2", "parallel"])
def test_the_activations_are_those_of_the_gradient(
    down: Codec, scheme: str, settings: dict[str, Any]
) -> None:
    """The same step's, the same part of them under masks and dropout."""
    run(down, scheme, **settings)
    assert len(SEEN) == 2 * (2 + 3)
    for gradient, activations in SEEN:
        assert activations is not None
        assert not activations.requires_grad
        assert float(activations.abs().sum()) > 0
        apart = gradient.norm() * activations.norm() - (gradient * activations).sum()
        assert float(apart) < 1e-5 * float(gradient.norm() * activations.norm())


def test_activations_at_a_cut_of_ones_own() -> None:
    """A device that is cut elsewhere has the activations of its own cut."""
    run(Looking(), cuts=None)
    shapes = {tuple(gradient.shape[1:]) for gradient, _ in SEEN}
    assert shapes == {(4, 4, 4)}
    for gradient, activations in SEEN:
        assert activations is not None
        assert activations.shape == gradient.shape
    assert any(float(a.min()) < 0 for _, a in SEEN if a is not None)
