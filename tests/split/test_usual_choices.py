"""What encoders mostly choose, told to all devices at the start of a round."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD

from flwr_slfac.codec import Float16, Memory, Waterfill, decode, encode
from flwr_slfac.codec.waterfill import plan
from flwr_slfac.codec.waterfill.header import Header
from flwr_slfac.codec.waterfill.trials import best_trial
from flwr_slfac.codec.wire import pack_frame, unpack_frame
from flwr_slfac.errors import DecodeError
from flwr_slfac.split import Begin, train_locally
from flwr_slfac.split.features import Recall, Usual
from flwr_slfac.split.usual_choices import UsualChoices
from tests.codec.test_noise import drawn, smooth
from tests.split import builders

UP = Waterfill(nrmse=0.1)


def choice_of(frame: bytes) -> str:
    """Return what the encoder of a frame chose."""
    return UP.choice_of(unpack_frame(frame, max_elements=10**6))


def begin(server_round: int, up: Any = UP) -> Begin:
    """Return what would be told without choices."""
    return Begin(server_round, 0, None, up, "", cut_features=(Recall(),))


def told(features: tuple[Any, ...]) -> list[str]:
    """Return the choices among features."""
    return [f.choice for f in features if isinstance(f, Usual)]


@pytest.mark.parametrize("scheme", ["parallel", "sequential"])
def test_bases_are_tried_in_the_first_round_and_the_eighth(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all others no frame of activations is."""
    tried: list[int] = []

    def counted(*args: Any) -> Any:
        tried.append(1)
        return best_trial(*args)

    monkeypatch.setattr(plan, "best_trial", counted)
    front, back = builders.halves()
    run = partial(
        train_locally,
        builders.devices(front, [24, 20, 16], optimizer=partial(SGD, lr=0.01)),
        front.state_dict(),
        builders.server(back, scheme),
        up=UP,
        evaluate=False,
    )
    run(num_rounds=1)
    first = len(tried)
    assert first >= 3
    tried.clear()
    run(num_rounds=9)
    assert len(tried) == 2 * first


@pytest.mark.parametrize("name", ["smooth", "drawn", "vectors"])
@pytest.mark.parametrize(
    "codec", [UP, Waterfill(nrmse=0.05, bits=1.0), Waterfill(bits=2.0)]
)
def test_a_stream_that_is_told_is_as_small(name: str, codec: Waterfill) -> None:
    """As one whose first frame was tried, at the same error, and it decodes alone."""
    x = {
        "smooth": smooth(16, 8, 16, 16).relu(),
        "drawn": drawn(16, 8, 14, 14),
        "vectors": drawn(64, 32),
    }[name]
    tried = encode(x, codec)
    choice = codec.usual([choice_of(tried)])
    memory: Memory = {}
    frame = encode(x, codec, memory=codec.begun(memory, choice))
    assert memory == {}
    assert choice_of(frame).split(" ")[:2] == choice.split(" ")[:2]
    assert len(frame) < 1.03 * len(tried)
    errors = [float((decode(f) - x).norm() / x.norm()) for f in (frame, tried)]
    assert errors[0] == pytest.approx(errors[1], rel=0.04)


def test_the_most_common_choice_is_told_at_the_median_of_its_steps() -> None:
    """What is told is some 12 characters."""
    choices = ["dct mr 0.5", "haar - 3", "dct mr 0.0123", "dct mr 0.002", ""]
    assert Waterfill.usual(choices) == "dct mr 0.0123"
    assert Waterfill.usual([""]) == ""
    frames = [encode(drawn(8, 4, 8, 8), UP), encode(torch.zeros(2, 3), UP)]
    assert 5 < len(choice_of(frames[0])) < 18
    assert choice_of(frames[1]) == ""


def test_no_device_can_keep_others_from_their_work() -> None:
    """A basis of another spelling decodes, and is told by its proper name."""
    frame = unpack_frame(encode(drawn(8, 4, 8, 8), UP), max_elements=10**6)
    head = Header.unpack(frame.sections[0])
    spelled = replace(head, basis=f" {head.basis} ").pack()
    parts = [spelled, *frame.sections[1:]]
    data = pack_frame(frame.codec_id, frame.dtype, frame.shape, parts)
    assert decode(data).shape == frame.shape
    choice = UP.usual([choice_of(data)])
    assert choice == UP.choice_of(frame)
    assert UP.begun({}, choice)


@pytest.mark.parametrize(
    "choice", ["dct", "dct - x", "dct - nan", "dct - -1", "none - 1", "dct  - 1"]
)
def test_what_is_no_choice_is_refused(choice: str) -> None:
    """By an error that shows it."""
    with pytest.raises(DecodeError, match=choice):
        UP.begun({}, choice)


def test_choices_are_of_the_round_before() -> None:
    """The same after a resume; a round in which none is seen changes nothing."""
    choices = UsualChoices()
    frames = [encode(drawn(8, 4, 8, 8, seed=i), UP) for i in range(2)]
    assert told(choices.begin(begin(1)).cut_features) == []
    choices.end(0, UP, frames[0])
    # Another codec's than was asked for, and of one without choices.
    choices.end(1, Waterfill(bits=1.0), encode(torch.ones(4), Float16()))
    assert told(choices.begin(begin(1)).cut_features) == []
    other = UsualChoices()
    other.load(choices.state())
    for each in (choices, other):
        for server_round in (2, 3):
            features = each.begin(begin(server_round)).cut_features
            assert told(features) == [choice_of(frames[0])]
            assert features[0] == Recall()
        assert told(each.begin(begin(4, Float16())).cut_features) == []
        each.end(0, UP, frames[1])
        assert told(each.begin(begin(5)).cut_features) == [choice_of(frames[1])]


def test_what_is_saved_does_not_tell_the_order_of_arrival() -> None:
    """Two runs that are the same save the same text."""
    frame = encode(drawn(8, 4, 8, 8), UP)
    texts = set()
    for order in ((0, 1, 2), (2, 0, 1)):
        choices = UsualChoices()
        for device in order:
            choices.end(device, UP, frame)
        texts.add(json.dumps(choices.state()))
    assert len(texts) == 1
