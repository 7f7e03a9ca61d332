"""One bad device harms nobody else: what it sends is refused, and it is lost."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from flwr_slfac import Lightweight, cut
from flwr_slfac.codec import Float16, Identity, Integers, Uniform, Waterfill, encode
from flwr_slfac.errors import AllDevicesLostError, DeviceError, SettingError
from flwr_slfac.split import (
    Description,
    EvaluateRequest,
    Limits,
    LocalLink,
    LocalResult,
    Lost,
    Smashed,
    TrainReply,
    TrainRequest,
    train_locally,
)
from flwr_slfac.split.protocol import EvaluateAnswer, TrainAnswer
from tests.split import builders

SCHEMES = ("sequential", "sflv1", "sflv2", "parallel")
SETTINGS = {
    "plain": None,
    "masked": Lightweight(prune=0.5, structured=False),
    "light": Lightweight(prune=0.5, gradient_bits=8, activation_dropout=0.3),
}
SIZES = [16, 24, 16]
BAD = 1  # the partition id of the device that misbehaves
NUM_STEPS = 3  # of that device in a round: 24 examples in batches of 8
NUM_DRAWS = 1000

Mutation = Callable[[Any, random.Random], Any]


def flipped(frame: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them changed."""
    data = bytearray(frame)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    return bytes(data)


def garbage(rng: random.Random) -> bytes:
    """Return random bytes."""
    return rng.randbytes(rng.randint(0, 200))


def smashed_with(**fields: Callable[[Smashed, random.Random], object]) -> Mutation:
    """Change fields of the smashed data in a reply."""

    def change(reply: Any, rng: random.Random) -> Any:
        old = reply.smashed if isinstance(reply, TrainReply) else reply.batches[0]
        new = replace(old, **{name: make(old, rng) for name, make in fields.items()})
        if isinstance(reply, TrainReply):
            return replace(reply, smashed=new)
        return replace(reply, batches=[new, *reply.batches[1:]])

    return change


def tensor_frame(make: Callable[[int], torch.Tensor]) -> Callable[..., bytes]:
    """Code a tensor of the batch's size without loss."""

    def coded(old: Smashed, rng: random.Random) -> bytes:
        x = make(old.num_examples)
        return encode(x, Identity() if x.is_floating_point() else Integers())

    return coded


def raw(make: Callable[[int], torch.Tensor]) -> Callable[..., bytes]:
    """Code a tensor that `encode` would refuse: NaN and infinity, exactly."""
    return lambda old, rng: encode(make(old.num_examples), Identity())


IN_BATCH: dict[str, Mutation] = {
    "garbage activations": smashed_with(activations=lambda old, rng: garbage(rng)),
    "flipped activations": smashed_with(
        activations=lambda old, rng: flipped(old.activations, rng)
    ),
    "cut off activations": smashed_with(
        activations=lambda old, rng: old.activations[: rng.randrange(30)]
    ),
    "other maps": smashed_with(
        activations=tensor_frame(lambda n: torch.randn(n, 3, 5, 6))
    ),
    "fewer channels": smashed_with(
        activations=tensor_frame(lambda n: torch.randn(n, 2, 6, 6))
    ),
    "doubles": smashed_with(
        activations=tensor_frame(lambda n: torch.randn(n, 3, 6, 6).double())
    ),
    "integers": smashed_with(
        activations=tensor_frame(lambda n: torch.ones(n, 3, 6, 6).long())
    ),
    "NaN": smashed_with(activations=raw(lambda n: torch.full((n, 3, 6, 6), torch.nan))),
    "infinity": smashed_with(
        activations=raw(lambda n: torch.full((n, 3, 6, 6), torch.inf))
    ),
    "a scalar": smashed_with(activations=tensor_frame(lambda n: torch.tensor(1.0))),
    "no example": smashed_with(
        activations=tensor_frame(lambda n: torch.zeros(0, 3, 6, 6)),
        targets=tensor_frame(lambda n: torch.zeros(0).long()),
        num_examples=lambda old, rng: 0,
    ),
    "another count": smashed_with(
        num_examples=lambda old, rng: old.num_examples + rng.choice([-1, 1, 10**9])
    ),
    "no such memory order": smashed_with(
        memory_order=lambda old, rng: rng.choice([(0, 0, 1, 2), (1, 0), (4, 3, 2, 1)])
    ),
    "garbage targets": smashed_with(targets=lambda old, rng: garbage(rng)),
    "no such class": smashed_with(
        targets=tensor_frame(lambda n: torch.full((n,), 100))
    ),
    "negative class": smashed_with(
        targets=tensor_frame(lambda n: torch.full((n,), -7))
    ),
    "targets as floats": smashed_with(targets=tensor_frame(lambda n: torch.rand(n))),
    "targets of two dimensions": smashed_with(
        targets=tensor_frame(lambda n: torch.zeros(n, 2).long())
    ),
    "fewer targets": smashed_with(
        targets=tensor_frame(lambda n: torch.zeros(n - 1).long())
    ),
    "a claimed shape": smashed_with(
        shape=lambda old, rng: rng.choice([(8, 3, 6, 7), (2**40,), (8,), (-1, 3)])
    ),
    "a lossy frame of many values": smashed_with(
        activations=lambda old, rng: encode(torch.zeros(2**20), Uniform(bits=1))
    ),
}
IN_REPLY: dict[str, Mutation] = {
    "another partition": lambda r, rng: replace(r, device=rng.choice([0, 2, 77, -1])),
    "another number of steps": lambda r, rng: replace(
        r, num_steps=rng.choice([-1, 0, r.num_steps + 1, 10**12])
    ),
    "done too early": lambda r, rng: replace(r, done=True),
    "nothing": lambda r, rng: replace(r, smashed=None),
    "wants a front": lambda r, rng: replace(r, smashed=None, wants_front=True),
}
IN_LAST: dict[str, Mutation] = {
    "not done": lambda r, rng: replace(r, done=False),
    "no front": lambda r, rng: replace(r, front=None, update=None),
    "another key": lambda r, rng: replace(r, update=None, front={"x": torch.ones(1)}),
    "a key too few": lambda r, rng: replace(
        r, update=None, front=dict(list((r.front or {}).items())[1:])
    ),
    "other shapes": lambda r, rng: replace(
        r, update=None, front={k: torch.ones(7, 7) for k in r.front or {"0": 0}}
    ),
    "NaN in the front": lambda r, rng: replace(
        r,
        update=None,
        front={
            k: torch.full_like(v, torch.nan) if v.is_floating_point() else v
            for k, v in (r.front or {}).items()
        },
    ),
    "complex weights": lambda r, rng: replace(
        r, update=None, front={k: v + 0j for k, v in (r.front or {"0": 0}).items()}
    ),
    "an update of noise": lambda r, rng: replace(r, front=None, update=garbage(rng)),
    "another partition": IN_REPLY["another partition"],
}
IN_EVALUATION: dict[str, Mutation] = {
    **IN_BATCH,
    "another partition": IN_REPLY["another partition"],
    "no batch": lambda r, rng: replace(r, batches=[]),
    "too many batches": lambda r, rng: replace(r, batches=r.batches * 5),
    "batches for ever": lambda r, rng: replace(r, num_batches=10**12),
    "fewer batches than sent": lambda r, rng: replace(r, num_batches=-1),
}


class Hostile(LocalLink):
    """Lets one device answer one request wrongly, or not at all."""

    mutate: Mutation | None = None
    rng = random.Random(0)
    at = ("train", 0, 0)
    seen: Any = None

    def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
        """Change the answer of the step in question."""
        answers = super().train(requests)
        begin = next((r.begin for r in requests.values() if r.begin), None)
        self._round = begin.server_round if begin else self._round
        if BAD in requests:
            here = ("train", self._round, requests[BAD].step)
            self._change(answers, here)
        return answers

    def evaluate(
        self, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateAnswer]:
        """Change the answer of the request in question."""
        answers = super().evaluate(requests)
        begin = next((r.begin for r in requests.values() if r.begin), None)
        self._round = begin.server_round if begin else self._round
        if BAD in requests:
            self._change(answers, ("evaluate", self._round, requests[BAD].first))
        return answers

    _round = 0

    def _change(self, answers: dict[int, Any], here: tuple[str, int, int]) -> None:
        if here != self.at:
            return
        if self.mutate is None:
            answers[BAD] = Lost("fell silent", BAD)
        else:
            answers[BAD] = self.mutate(answers[BAD], self.rng)


def run(
    setting: str,
    scheme: str,
    at: tuple[str, int, int],
    mutate: Mutation | None,
    rng: random.Random,
    on_device_error: str = "drop",
) -> LocalResult:
    """Train three devices for two rounds; one answers wrongly at one place."""
    link = type("Link", (Hostile,), {})
    link.mutate = staticmethod(mutate) if mutate else None  # type: ignore[attr-defined]
    link.rng, link.at = rng, at  # type: ignore[attr-defined]
    front, back = builders.halves()
    result = train_locally(
        builders.devices(front, SIZES, keep_optimizer=True),
        front.state_dict(),
        builders.server(back, scheme),  # type: ignore[arg-type]
        num_rounds=2,
        lightweight=SETTINGS[setting],
        make_link=link,
        on_device_error=on_device_error,  # type: ignore[arg-type]
    )
    result.traffic = None  # type: ignore[assignment]
    return result


@cache
def without(setting: str, scheme: str, at: tuple[str, int, int]) -> LocalResult:
    """Train without the device from that place on, which is what must come out."""
    return run(setting, scheme, at, None, random.Random(0))


def draw(rng: random.Random) -> tuple[str, str, tuple[str, int, int], str, Mutation]:
    """Draw where, and how, a device misbehaves."""
    setting, scheme = rng.choice(list(SETTINGS)), rng.choice(SCHEMES)
    server_round = rng.choice([1, 2])
    if rng.random() < 0.3:
        name = rng.choice(list(IN_EVALUATION))
        first = 0  # all test batches of these devices go in one reply
        at = ("evaluate", server_round, first)
        return setting, scheme, at, name, IN_EVALUATION[name]
    step = rng.randint(0, NUM_STEPS)
    choices = dict(IN_LAST) if step == NUM_STEPS else {**IN_BATCH, **IN_REPLY}
    if step == 0:
        # The first answer is what tells a device's id, unless the link asked before.
        del choices["another partition"]
    name = rng.choice(list(choices))
    return setting, scheme, ("train", server_round, step), name, choices[name]


@pytest.mark.parametrize("part", range(10))
def test_the_others_end_as_if_the_device_had_fallen_silent(
    part: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A thousand wrong answers: each is survived, and moves no other bit."""
    rng = random.Random(part)
    lost = 0
    for _ in range(NUM_DRAWS // 10):
        setting, scheme, at, name, mutation = draw(rng)
        caplog.clear()
        result = run(setting, scheme, at, mutation, rng)
        told = [r.getMessage() for r in caplog.records if "at fault" in r.getMessage()]
        if not told:
            # What it sent is what an honest device might have sent.
            assert all(bool(v.isfinite().all()) for v in result.front.values())
            continue
        lost += 1
        if at[0] == "train":
            # A claim may come to light a step later: from there on it is lost.
            server_round, step = map(int, re.findall(r"\d+", told[0])[:2])
            at = ("train", server_round, step)
        want = without(setting, scheme, at)
        case = (setting, scheme, at, name)
        assert all(torch.equal(result.front[k], v) for k, v in want.front.items()), case
        assert result.evaluations == want.evaluations, case
        assert [r.loss for r in result.rounds] == [r.loss for r in want.rounds], case
    assert lost > 0.6 * NUM_DRAWS / 10


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["garbage activations", "no such class", "NaN"])
def test_a_user_may_have_a_bad_device_end_the_run(scheme: str, name: str) -> None:
    """With "raise" the first fault is an error that names it."""
    with pytest.raises(Exception, match=r"device 1|targets|NaN|nan"):
        run("plain", scheme, ("train", 1, 1), IN_BATCH[name], random.Random(0), "raise")


def test_if_every_device_is_at_fault_the_error_says_so() -> None:
    """A loss that takes nobody's targets is the user's to mend."""
    front, back = builders.halves()
    server = builders.server(back)
    server.loss = nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(SettingError, match="scalar"):
        train_locally(
            builders.devices(front, SIZES),
            front.state_dict(),
            server,
            num_rounds=1,
            on_device_error="drop",
        )


def test_a_device_that_refuses_is_lost_with_its_reason() -> None:
    """An empty partition costs itself its round; all empty, the run."""
    front, back = builders.halves()
    devices = builders.devices(front, SIZES)
    devices[BAD].train_set = builders.data(1)
    devices[BAD].drop_last = True
    settings: dict[str, Any] = {"num_rounds": 1, "on_device_error": "drop"}
    server = builders.server(back)
    result = train_locally(devices, front.state_dict(), server, **settings)
    assert "fewer examples" in result.rounds[0].lost[BAD]
    assert sorted(r.device for r in result.rounds[0].finished.values()) == [0, 2]
    for device in devices:
        device.train_set, device.drop_last = builders.data(1), True
    with pytest.raises(AllDevicesLostError, match="fewer examples"):
        train_locally(devices, front.state_dict(), builders.server(back), **settings)


def test_a_short_frame_cannot_claim_much_memory() -> None:
    """Once the cut's size is known, a frame of 79 bytes may not decode to megabytes."""
    from flwr_slfac.split.limits import CutSize

    size = CutSize(Limits())
    size.learn(torch.zeros(8, 64, 32, 32))
    assert size.limit(num_examples=8) == 16 * 8 * 64 * 32 * 32
    assert CutSize(Limits(), (2, 3, 4)).limit(num_examples=5) == 16 * 5 * 12
    assert CutSize(Limits(max_growth=2), (2, 12)).limit(num_examples=5) == 2 * 5 * 12
    frame = encode(torch.zeros(2**24), Float16())
    with pytest.raises(DeviceError, match="max_frame_bytes"):
        Limits(max_frame_bytes=100).require_frame(frame)


def test_the_first_frame_is_bounded_by_the_example_of_the_cut() -> None:
    """Before any batch is known, a short frame may not claim megabytes either."""

    class Claims(LocalLink):
        def train(self, requests: Mapping[int, TrainRequest]) -> dict[int, TrainAnswer]:
            answers = super().train(requests)
            frame = encode(torch.zeros(8, 2**21), Waterfill(nrmse=0.5))
            assert len(frame) < 1000
            reply = answers.get(BAD)
            if not isinstance(reply, TrainReply) or reply.smashed is None:
                return answers
            smashed = replace(reply.smashed, activations=frame)
            return {**answers, BAD: replace(reply, smashed=smashed)}

    model = nn.Sequential(*(m for half in builders.halves() for m in half))
    halves = cut(model, at="3", example=torch.zeros(2, 1, 6, 6))
    result = train_locally(
        builders.devices(halves.front, SIZES),
        halves.front.state_dict(),
        builders.server(halves.back),
        num_rounds=1,
        on_device_error="drop",
        make_link=Claims,
    )
    assert "limit" in result.rounds[0].lost[BAD]


@pytest.mark.parametrize(
    "name", ["max_elements", "max_frame_bytes", "max_steps", "max_growth"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_limits_are_checked(name: str, value: object) -> None:
    """A bound below 1 is refused and named."""
    with pytest.raises(SettingError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_devices_at_fault_are_dropped_or_raise() -> None:
    """Another word is refused."""
    front, back = builders.halves()
    with pytest.raises(SettingError, match="on_device_error"):
        train_locally(
            builders.devices(front, SIZES),
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            on_device_error="ignore",  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("way", ["renamed", "out of place", "silent"])
def test_a_device_cannot_decide_alone_which_channels_there_are(way: str) -> None:
    """What most devices describe holds; the run is that of honest descriptions."""

    class Misleads(LocalLink):
        def describe(
            self, keys: list[int], *, channels: bool
        ) -> dict[int, Description | Lost]:
            answers = super().describe(keys, channels=channels)
            first = answers.get(0)
            if not isinstance(first, Description) or first.channels is None:
                return answers
            found, (group, *rest) = first.channels, first.channels.groups
            if way == "silent":
                return {**answers, 0: Lost("did not answer", 0)}
            if way == "renamed":
                group = replace(group, name="another")
            else:
                (member, *others) = group.members
                moved = replace(member, positions=member.positions + 1000)
                group = replace(group, members=(moved, *others))
            own = replace(found, groups=(group, *rest))
            return {**answers, 0: replace(first, channels=own)}

    front, back = builders.halves()
    results = [
        train_locally(
            builders.devices(front, SIZES),
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            lightweight=Lightweight(prune=0.5),
            on_device_error="drop",
            make_link=link,
        )
        for link in (LocalLink, Misleads)
    ]
    assert not results[1].rounds[0].lost
    builders.assert_same(*(dict(result.front) for result in results))


def test_two_devices_with_unlike_channels_are_an_error_that_names_them() -> None:
    """Where no two devices agree, nobody knows the model: the run ends."""
    front, back = builders.halves()
    devices = builders.devices(front, [16, 16])
    devices[1].front = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU())
    with pytest.raises(DeviceError, match="each of devices 0, 1 describes"):
        train_locally(
            devices,
            front.state_dict(),
            builders.server(back),
            num_rounds=1,
            lightweight=Lightweight(prune=0.5),
            on_device_error="drop",
        )
