"""A feature of what crosses is an object with two ends; the round does not know it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from flwr_slfac import Lightweight
from flwr_slfac._release import RELEASE
from flwr_slfac.codec import Feedback, Identity, TopK
from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.split import (
    Begin,
    CutFeature,
    LocalResult,
    Passage,
    Place,
    register_feature,
    train_locally,
)
from flwr_slfac.split.features import Dropout
from flwr_slfac.transport.begins import begin_of_fields, begin_to_fields
from tests.split import builders
from tests.split.test_device_half import ForgetfulLink


class _Noisy(Passage):
    def __init__(self, noise: torch.Tensor) -> None:
        super().__init__(tuple(noise.shape))
        self._noise = noise

    def send(self, activations: torch.Tensor) -> torch.Tensor:
        return activations + self._noise


@register_feature
@dataclass(frozen=True)
class Noise(CutFeature):
    """Gaussian noise on the activations of training."""

    feature_id: ClassVar[str] = "test-noise"
    std: float

    def passage(self, shape: tuple[int, ...], moment) -> Passage:  # type: ignore[no-untyped-def]
        """Draw the noise of a batch."""
        generator = moment.generator("test-noise")
        return _Noisy(self.std * torch.randn(shape, generator=generator))


class NoisyFront(nn.Module):
    """A front that adds the noise of the feature by itself, for one device."""

    def __init__(self, front: nn.Module, std: float) -> None:
        super().__init__()
        self.front, self.std, self.step = front, std, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add noise in training."""
        out = self.front(x)
        if not self.training:
            return out
        moment = Place(0, 1, 0).at(self.step)
        self.step += 1
        generator = moment.generator("test-noise")
        return out + self.std * torch.randn(out.shape, generator=generator)


def run(front: nn.Module, back: nn.Module, **settings: object) -> LocalResult:
    """Train one device for one round."""
    return train_locally(
        builders.devices(front, [32]),
        front.state_dict(),
        builders.server(back),
        num_rounds=1,
        **settings,  # type: ignore[arg-type]
    )


def test_a_feature_of_a_user_is_that_of_a_front_which_does_the_same() -> None:
    """Noise at the cut is noise at the end of the front, bit for bit."""
    front, back = builders.halves()
    feature = run(front, back, cut_features=[Noise(0.5)])
    own = run(NoisyFront(front, 0.5), back)
    want = {k.removeprefix("front."): v for k, v in own.front.items()}
    builders.assert_same(dict(feature.front), want)
    assert feature.evaluations == own.evaluations
    plain = run(front, back)
    assert feature.rounds[0].loss != plain.rounds[0].loss


@pytest.mark.parametrize("features", [[Noise(0.5)], [Noise(0.1), Dropout(0.3)]])
def test_features_are_repeated_exactly(features: list[CutFeature]) -> None:
    """Rebuilt from bytes before each step, a run with features ends in the same."""
    front, back = builders.halves()
    once = run(front, back, cut_features=features)
    again = run(front, back, cut_features=features, make_link=ForgetfulLink)
    builders.assert_same(dict(once.front), dict(again.front))


def test_lightweight_dropout_is_the_feature() -> None:
    """The setting and the feature of the same fields train alike."""
    front, back = builders.halves()
    setting = Lightweight(
        activation_dropout=0.3, dropout_unit="channel", dropout_per="example"
    )
    feature = Dropout(0.3, "channel", "example")
    one = run(front, back, lightweight=setting)
    other = run(front, back, cut_features=[feature])
    builders.assert_same(dict(one.front), dict(other.front))


def test_features_travel_by_name_and_fields() -> None:
    """What a device reads is what the server asked for."""
    begin = Begin(
        1, 0, None, Identity(), RELEASE, cut_features=(Noise(0.5), Dropout(0.1))
    )
    assert begin_of_fields(begin_to_fields(begin)) == begin
    fields = begin_to_fields(begin)
    for text, message in (
        ('[["unheard", {}]]', "'unheard'"),
        ('[["test-noise", {"sd": 1}]]', "sd"),
        ('[["dropout", {"p": 2}]]', "activation_dropout"),
        ("[1]", "features"),
    ):
        with pytest.raises(DecodeError, match=message):
            begin_of_fields({**fields, "features": text})


def test_a_feature_must_be_registered_to_travel() -> None:
    """One that is not is refused by name, and no two share an id."""

    @dataclass(frozen=True)
    class Silent(CutFeature):
        feature_id: ClassVar[str] = "silent"

    begin = Begin(1, 0, None, Identity(), RELEASE)
    with pytest.raises(SettingError, match="Silent is not registered"):
        begin_to_fields(replace(begin, cut_features=(Silent(),)))
    Silent.feature_id = "dropout"
    with pytest.raises(SettingError, match="taken by Dropout"):
        register_feature(Silent)
    with pytest.raises(SettingError, match="dataclass"):
        register_feature(Passage)  # type: ignore[type-var]


def test_error_feedback_with_moving_places_is_refused() -> None:
    """In process as in Flower: a residual by place needs places that stay."""
    front, back = builders.halves()
    for codecs in ({"up": Feedback(TopK())}, {"down": Feedback(TopK())}):
        with pytest.raises(SettingError, match="error feedback"):
            run(front, back, cut_features=[Dropout(0.1)], **codecs)
    run(front, back, cut_features=[Noise(0.1)], down=Feedback(TopK()))
