"""Frames are coded on threads while others are under way, and no bit tells of it."""

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from flwr_slfac import Lightweight
from flwr_slfac.codec import (
    Codec,
    Frame,
    Hints,
    Identity,
    Memory,
    parse_codec,
    register,
)
from flwr_slfac.errors import EncodeError, SettingError
from flwr_slfac.split import LocalLink, LocalResult, Lost, TrainRequest, train_locally
from flwr_slfac.split import codec_pool as pools
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.protocol import (
    EvaluateAnswer,
    EvaluateRequest,
    TrainAnswer,
    TrainReply,
)
from flwr_slfac.states import State
from tests.split import builders

SIZES = [24, 20, 16, 28]
SETTINGS: dict[str, dict[str, Any]] = {
    "parallel": {"up": "waterfill(nrmse=0.2)", "down": "slfac"},
    "sflv1": {"scheme": "sflv1", "up": "slfac", "down": "uniform(bits=4)"},
    "sflv2": {"scheme": "sflv2", "up": "waterfill(bits=3)"},
    "relay": {"scheme": "sequential", "down": "randtopk(fraction=0.3)"},
    "temporal": {"up": "temporal(inner=waterfill(nrmse=0.2))"},
    "feedback": {"down": "feedback(inner=topk(fraction=0.2))"},
    "dropout": {
        "up": "waterfill(nrmse=0.2)",
        "lightweight": Lightweight(
            prune=0.4, activation_dropout=0.3, aggregate_every=2, period="round"
        ),
    },
}


@pytest.fixture(autouse=True)
def all_on_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code the tests' small tensors on threads too; let none outlive its round."""
    monkeypatch.setattr(pools, "_LEAST_ELEMENTS", 0)
    yield
    assert not codec_threads()


def codec_threads() -> list[str]:
    """Return the names of the pool's threads that are alive."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("slfac-codec")]


class Scrambled(LocalLink):
    """Gives answers in a random order, another one in each step."""

    order = random.Random(3)

    def train_each(
        self, requests: Iterable[tuple[int, TrainRequest]]
    ) -> Iterator[tuple[int, TrainAnswer]]:
        """Call the devices; shuffle what they answer."""
        answers = [*super().train_each(requests)]
        self.order.shuffle(answers)
        yield from answers

    def evaluate_each(
        self, requests: Iterable[tuple[int, EvaluateRequest]]
    ) -> Iterator[tuple[int, EvaluateAnswer]]:
        """Call the devices; shuffle what they answer."""
        answers = [*super().evaluate_each(requests)]
        self.order.shuffle(answers)
        yield from answers


class Faulty(Scrambled):
    """Loses device 0 at its step 1; devices 1 and 3 send garbage at their step 2."""

    def train(self, requests: Any) -> dict[int, TrainAnswer]:
        """Change some answers."""
        answers: dict[int, TrainAnswer] = super().train(requests)
        for key, answer in answers.items():
            step = requests[key].step
            if key == 0 and step == 1:
                answers[key] = Lost("unplugged")
            elif key in (1, 3) and step == 2 and isinstance(answer, TrainReply):
                assert answer.smashed is not None
                garbage = replace(answer.smashed, activations=b"garbage %d" % key)
                answers[key] = replace(answer, smashed=garbage)
        return answers


def train(
    setting: dict[str, Any],
    threads: int | None,
    link: Callable[..., LocalLink] = Scrambled,
    num_rounds: int = 2,
    **more: Any,
) -> tuple[LocalResult, State]:
    """Train four devices."""
    front, back = builders.halves()
    server = builders.server(back, setting.get("scheme", "parallel"))
    down = setting.get("down", "identity")
    result = train_locally(
        builders.devices(front, SIZES),
        front.state_dict(),
        server,
        num_rounds=num_rounds,
        up=parse_codec(setting.get("up", "identity")),
        down=down if isinstance(down, Codec) else parse_codec(down),
        lightweight=setting.get("lightweight"),
        codec_threads=threads,
        make_link=link,
        **more,
    )
    return result, server.snapshot()


def books(result: LocalResult) -> list[dict[str, Any]]:
    """Return the ledger without the seconds."""
    return [{**asdict(row), "seconds": 0.0} for row in result.traffic.rows()]


def assert_same(
    one: tuple[LocalResult, State], other: tuple[LocalResult, State]
) -> None:
    """Assert that two runs came to the same bits, bytes, losses and metrics."""
    builders.assert_same(dict(one[0].front), dict(other[0].front))
    builders.assert_same(dict(one[1]), dict(other[1]))
    assert one[0].evaluations == other[0].evaluations
    assert books(one[0]) == books(other[0])
    for a, b in zip(one[0].rounds, other[0].rounds, strict=True):
        assert list(a.lost.items()) == list(b.lost.items())
        assert (a.loss, a.num_steps) == (b.loss, b.num_steps)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_number_of_threads_and_no_order_of_arrival_changes_a_bit(name: str) -> None:
    """Weights, losses, metrics, bytes are those of one thread and of device order."""
    expected = train(SETTINGS[name], 1, LocalLink)
    for threads in (1, 2, 8):
        assert_same(expected, train(SETTINGS[name], threads))


def test_devices_that_fail_are_lost_alike_on_any_number_of_threads() -> None:
    """A lost device and garbage in two frames: the same losses, in the same order."""
    setting = {"up": "slfac", "down": "uniform(bits=4)"}
    expected = train(setting, 1, Faulty, on_device_error="drop")
    assert [list(r.lost) for r in expected[0].rounds] == [[0, 1, 3]] * 2
    for threads in (2, 8):
        assert_same(expected, train(setting, threads, Faulty, on_device_error="drop"))


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_first_device_at_fault_raises_whoever_arrived_first(threads: int) -> None:
    """With on_device_error="raise" the error is that of the lowest device."""
    with pytest.raises(Exception, match="device 1, round 1, step 2 sent smashed"):
        train({"up": "slfac"}, threads, Faulty)


@register
@dataclass(frozen=True)
class Watched(Codec):
    """Codes as `Identity` does, and calls what a test wants to be called."""

    codec_id: ClassVar[str] = "test-watched"
    on_encode: ClassVar[Callable[[int], None]] = staticmethod(lambda rows: None)
    on_decode: ClassVar[Callable[[int], None]] = staticmethod(lambda rows: None)

    def encode_sections(self, tensor: torch.Tensor, hints: Hints) -> Any:
        """Code a tensor."""
        type(self).on_encode(len(tensor))
        return Identity().encode_sections(tensor, hints)

    @classmethod
    def decode_sections(
        cls, frame: Frame, memory: Memory, device: torch.device
    ) -> torch.Tensor:
        """Decode a frame."""
        cls.on_decode(frame.shape[0])
        return Identity.decode_sections(frame, memory, device)


def refuse(*rows: int, error: Exception) -> Callable[[int], None]:
    """Return what raises for tensors of so many rows, the last batch of a device."""

    def on_encode(num_rows: int) -> None:
        if num_rows in rows:
            raise error

    return on_encode


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_a_gradient_that_cannot_be_coded_drops_its_device_alone(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others go on, and the round's books are the same on any number of threads."""
    error = EncodeError("its values cannot be coded")
    monkeypatch.setattr(Watched, "on_encode", staticmethod(refuse(4, error=error)))
    expected = train({"down": Watched()}, 1, LocalLink, on_device_error="drop")
    # Devices 1 and 3 have 20 and 28 examples: their last batch is one of four.
    assert [list(r.lost) for r in expected[0].rounds] == [[1, 3]] * 2
    assert_same(expected, train({"down": Watched()}, threads, on_device_error="drop"))
    with pytest.raises(Exception, match="gradient of device 1, round 1, step 2 cannot"):
        train({"down": Watched()}, threads)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["on_encode", "on_decode"])
def test_what_a_codec_raises_ends_the_run_and_leaves_no_thread(
    kind: type[BaseException], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is none of a device's comes out as it is, on one thread or two."""
    monkeypatch.setattr(Watched, where, staticmethod(refuse(4, error=kind("oh"))))  # type: ignore[arg-type]
    way = {"down": Watched()} if where == "on_encode" else {"up": "test-watched"}
    for threads in (1, 2):
        with pytest.raises(kind, match="oh"):
            train(way, threads, on_device_error="drop")
        assert not codec_threads()


def test_an_interrupt_while_devices_are_waited_for_leaves_no_thread() -> None:
    """Ctrl-C between two answers ends the round; what was begun is not waited for."""

    class Interrupted(LocalLink):
        def train_each(self, requests: Any) -> Iterator[tuple[int, TrainAnswer]]:
            yield next(super().train_each(requests))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train({"up": "slfac"}, 2, Interrupted)


def test_an_answer_is_decoded_while_others_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Device 1 does not answer before the frame of device 0 has been decoded."""
    decoded = threading.Event()
    monkeypatch.setattr(Watched, "on_decode", staticmethod(lambda rows: decoded.set()))

    class Waits(LocalLink):
        def train_each(self, requests: Any) -> Iterator[tuple[int, TrainAnswer]]:
            answers = dict(super().train_each(requests))
            for key in sorted(answers):
                decoded.clear()
                smashed = getattr(answers[key], "smashed", None)
                yield key, answers[key]
                assert smashed is None or decoded.wait(30)

    train({"up": "test-watched"}, 2, Waits, num_rounds=1)


def test_a_gradient_is_sent_while_others_are_coded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last gradient of a step is not coded before another one was sent."""
    sent = threading.Event()
    calls: list[int] = []

    def wait(rows: int) -> None:
        calls.append(rows)
        if len(calls) % len(SIZES) == 0:
            assert sent.wait(30)

    class Notes(LocalLink):
        def train_each(self, requests: Any) -> Iterator[tuple[int, TrainAnswer]]:
            def noted() -> Iterator[tuple[int, TrainRequest]]:
                for key, request in requests:
                    sent.set()
                    yield key, request
                sent.clear()

            return super().train_each(noted())

    monkeypatch.setattr(Watched, "on_encode", staticmethod(wait))
    front, back = builders.halves()
    train_locally(
        builders.devices(front, [16] * len(SIZES)),
        front.state_dict(),
        builders.server(back),
        num_rounds=2,
        down=Watched(),
        codec_threads=2,
        make_link=Notes,
    )
    assert len(calls) == 2 * 2 * len(SIZES)


@pytest.mark.parametrize("threads", [1, 2])
def test_few_test_batches_are_decoded_ahead(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation holds a few decoded batches a thread, however many arrived."""
    counts = {"decoded": 0, "judged": 0, "most": 0}
    lock = threading.Lock()

    def decoded(rows: int) -> None:
        with lock:
            counts["decoded"] += 1
            ahead = counts["decoded"] - counts["judged"]
            counts["most"] = max(counts["most"], ahead)

    def judged(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        with lock:
            counts["judged"] += 1
        return 0.0

    monkeypatch.setattr(Watched, "on_decode", staticmethod(decoded))
    front, back = builders.halves()
    devices = builders.devices(front, [8] * 4, batch_size=2)
    server = builders.server(back, metrics={"judged": judged})
    train_locally(
        devices, front.state_dict(), server, num_rounds=1, up=Watched(),
        codec_threads=threads, make_link=Scrambled,
    )  # fmt: skip
    assert counts["judged"] == 4 * 5
    # Before any is judged, training decodes four batches a device.
    assert 16 < counts["most"] <= 16 + 2 * threads + 1


def test_torch_computes_on_one_thread_in_the_pool_and_as_before_outside() -> None:
    """The caller's number of threads, and that of threads to come, stay as they are."""
    torch.set_num_threads(3)
    with CodecPool(2) as pool:
        inside = pool.submit(torch.get_num_threads, 2**20).result()
        assert (inside, torch.get_num_threads()) == (1, 3)
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


def test_small_work_stays_in_the_callers_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread of its own is for tensors of 131,072 values and more."""
    monkeypatch.undo()
    with CodecPool(2) as pool:
        here = pool.submit(threading.current_thread, 2**17 - 1).result()
        there = pool.submit(threading.current_thread, 2**17).result()
    assert here is threading.current_thread()
    assert there.name.startswith("slfac-codec")


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_a_number_of_threads_that_is_none_is_refused(threads: Any) -> None:
    """The setting is a whole number above 0, or None."""
    with pytest.raises(SettingError, match="codec_threads is"):
        train({}, threads)
