"""What is saved is read again bit for bit, or refused by name; never half of it."""

import hashlib
import json
import logging
import math
import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import strategy
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

import flwr_slfac.flower_kinds  # noqa: F401 - makes Flower's records known
from flwr_slfac import (
    CheckpointError,
    Lightweight,
    RoundReport,
    SaveBest,
    SettingError,
    StopEarly,
    cut,
    load_checkpoint,
)
from flwr_slfac.checkpoint import CheckpointFolder, pack, unpack
from flwr_slfac.checkpoint import folder as checkpoint_folder
from tests.resumable import Case, assert_same_run, bits
from tests.split import builders
from tests.split.test_lightweight import net
from tests.test_resume import counting

CASE = Case()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of four rounds, of which three are kept."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    CASE.run(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def back_and_forth(value: Any) -> Any:
    """Return a value by way of JSON text and tensors."""
    packed, tensors = pack(value)
    return unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=8)
    | st.floats(width=32).map(np.float32)
    | st.integers(0, 9).map(np.int64)
)
keys = st.text() | st.integers() | st.tuples(st.integers(), st.integers())
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.dictionaries(keys, inner).map(OrderedDict)
        | st.lists(inner, max_size=3).map(lambda v: deque(v, 4))
    ),
    max_leaves=12,
)


@given(values)
def test_nested_values_come_back(value: Any) -> None:
    """Any nesting of what is known comes back with its types and values."""
    back = back_and_forth(value)
    assert repr(back) == repr(value)
    assert type(back) is type(value)


DTYPES = [
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool"),
        *("float8_e4m3fn", "float8_e5m2"),
    )
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)], ids=str)
def test_every_bit_of_a_tensor_comes_back(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """NaN with its payload and all else, of any dtype and shape."""
    num_bytes = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (num_bytes,))
    tensor = raw.to(torch.uint8).view(dtype).reshape(shape)
    back = back_and_forth([tensor, tensor])[1]
    assert (back.dtype, back.shape) == (dtype, tensor.shape)
    assert bits(back) == bits(tensor)


@pytest.mark.parametrize(
    "dtype",
    ["f8", "f4", "f2", "i8", "u2", "u8", "?", "c8", "c16", ">f4", "S3", "M8[s]"],
)
def test_arrays_come_back(dtype: str) -> None:
    """NumPy's arrays and scalars keep dtype, shape and bytes."""
    array = np.frombuffer(bytearray(range(96)), dtype=dtype)[:6].reshape(2, 3)
    for each in (array, array.T, array[0, 0], array[:0]):
        back = back_and_forth(each)
        assert type(back) is type(each)
        assert (back.dtype.newbyteorder("="), back.shape) == (
            each.dtype.newbyteorder("="),
            each.shape,
        )
        assert (
            np.asarray(back).tobytes() == np.asarray(each).astype(back.dtype).tobytes()
        )


def test_what_else_is_known_comes_back() -> None:
    """Views, parameters, counters, generators and Flower's records."""
    base = torch.arange(12.0).reshape(3, 4)
    views = [
        base.T,
        base[1:],
        base[:, 1],
        torch.view_as_complex(base.view(3, 2, 2)).conj(),
    ]
    for one, other in zip(views, back_and_forth(views), strict=True):
        assert torch.equal(one, other)
    parameter = back_and_forth(nn.Parameter(base))
    assert type(parameter) is nn.Parameter
    assert parameter.requires_grad
    counts = Counter({3: 2})
    assert sorted(back_and_forth(counts).elements()) == [3, 3]
    assert back_and_forth(defaultdict(list, {1: [2]}))[5] == []
    assert back_and_forth({"a", "b"}) == {"a", "b"}
    for generator in (
        random.Random(1),
        np.random.default_rng(1),
        np.random.RandomState(1),
    ):
        assert back_and_forth(generator).random() == generator.random()
    of_torch = torch.Generator().manual_seed(5)
    copy = back_and_forth(of_torch)
    assert torch.equal(torch.rand(2, generator=copy), torch.rand(2, generator=of_torch))
    arrays = ArrayRecord({"w": Array(np.ones(2, ">f4")), "e": Array(np.zeros(()))})
    same = back_and_forth(arrays)
    assert {n: (a.dtype, a.shape, a.data) for n, a in same.items()} == {
        n: (a.dtype, a.shape, a.data) for n, a in arrays.items()
    }
    config = ConfigRecord({"a": b"x", "b": [1.0, math.inf]})
    assert back_and_forth({"c": config})["c"] == config
    assert back_and_forth(MetricRecord({"m": 1})) == MetricRecord({"m": 1})


@pytest.mark.parametrize(
    "value",
    [object(), lambda: 0, {1: [print]}, np.array([None]), torch.ones(2).to_sparse()],
)
def test_what_is_not_known_is_refused_by_name(value: Any) -> None:
    """Nothing is pickled: the class is named, and where it is."""
    with pytest.raises(CheckpointError, match=r"thing at 'a/0.*' holds a [a-z_]+\."):
        pack({"a": [value]}, "thing")


def test_a_value_that_holds_itself_is_refused() -> None:
    """There is no end to it."""
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(CheckpointError, match="holds itself"):
        pack(ring)


def truncate(path: Path) -> None:
    """Cut off the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, where: float = 0.5) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 4
    path.write_bytes(data)


def of_another_release(path: Path) -> None:
    """Make a file, if it is the manifest, one of another release."""
    path.write_text(path.read_text().replace('"release": "0.1', '"release": "9.9'))


FILES = (
    *("manifest.json", "values.json", "rounds.bin"),
    *("front.safetensors", "back.safetensors", "state.safetensors"),
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    name: str,
    harm: Callable[[Path], None],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Truncated, changed or gone: the run goes on from the newest whole one."""
    harm(folder / "round-000004" / name)
    harm(folder / "round-000003" / name)
    with caplog.at_level(logging.WARNING, "flwr"):
        resumed = CASE.run(folder, resume=True)
    named = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert len(named) == 2
    assert all(f"round-00000{4 - i}" in text for i, text in enumerate(named))
    assert all(name in text for text in named)
    assert resumed.central_rounds == [3, 4]
    assert_same_run(resumed, CASE.run())
    assert load_checkpoint(folder).server_round == 4


@given(where=st.floats(0, 1, exclude_max=True))
def test_no_changed_manifest_is_believed(saved: Path, where: float) -> None:
    """Any bit of the manifest counts."""
    path = saved / "round-000004" / "manifest.json"
    before = path.read_bytes()
    try:
        flip(path, where)
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            load_checkpoint(path.parent)
    finally:
        path.write_bytes(before)


def test_only_damaged_checkpoints_are_an_error(folder: Path) -> None:
    """A run does not start anew where one was lost; another release is named."""
    for path in folder.glob("round-*/manifest.json"):
        of_another_release(path)
        about = json.loads(path.read_text())
        about.pop("sha256")
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        path.write_text(json.dumps({**about, "sha256": digest}))
    with pytest.raises(CheckpointError, match=r"9\.9\.0.*this is 0\.1") as found:
        CASE.run(folder, resume=True)
    assert "start anew" in str(found.value)
    with pytest.raises(CheckpointError, match=r"9\.9\.0"):
        load_checkpoint(folder)


def dropping() -> tuple[nn.Module, nn.Module]:
    """Return the usual halves, with another share of dropout."""
    return builders.halves(dropout=0.1)


def narrow() -> tuple[nn.Module, nn.Module]:
    """Return halves of which the back is of another shape."""
    front, _ = builders.halves()
    return front, nn.Sequential(nn.Flatten(), nn.Linear(108, 4))


OTHERS = {
    "scheme": ({"scheme": "sflv2"}, "scheme was 'parallel' and is 'sflv2'"),
    "up": ({"up": "float16"}, "up was 'identity' and is 'float16'"),
    "down": ({"down": "topk(fraction=0.5)"}, "down was 'identity'"),
    "seed": ({"seed": 5}, "seed was 0 and is 5"),
    "lightweight": ({"lightweight": Lightweight(prune=0.2)}, "lightweight was None"),
    "optimizer": ({"optimizer": partial(SGD, lr=0.01)}, "lr: 0.05"),
    "loss": ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "label_smoothing=0.1"),
    "clip_norm": ({"clip_norm": 1.0}, "clip_norm was None and is 1.0"),
    "autocast": ({"autocast": torch.bfloat16}, "autocast was 'None'"),
    "config": ({"start": {"train_config": ConfigRecord({"lr": 0.1})}}, "train_config"),
    "sampling": ({"seeded_sampling": False}, "seeded_sampling was True and is False"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_are_refused_by_name(name: str, folder: Path) -> None:
    """What was saved under other settings is not gone on with."""
    changed, text = OTHERS[name]
    with pytest.raises(SettingError, match="other settings") as found:
        CASE.run(folder, resume=True, **changed)
    assert text in str(found.value)


def test_other_strategies_and_models_are_refused_by_name(folder: Path) -> None:
    """So are another strategy, another number of its settings, and other shapes."""
    for case, text in (
        (Case(partial(strategy.FedAdam, eta=0.1)), "FedAvg"),
        (Case(partial(strategy.FedAvg, fraction_train=0.5)), "FedAvg.fraction_train"),
        (Case(model=narrow), "back '1.weight'"),
        (Case(model=dropping), "back module '4' was Dropout(p=0.0"),
        (Case(model=net), "front '"),
    ):
        with pytest.raises(SettingError, match="other settings") as found:
            case.run(folder, resume=True)
        assert text in str(found.value)


def test_a_folder_of_another_run_is_not_mixed(folder: Path, tmp_path: Path) -> None:
    """Without resume=True a folder must be empty; resume needs a folder."""
    with pytest.raises(SettingError, match="another run, up to round 4"):
        CASE.run(folder)
    with pytest.raises(SettingError, match="needs checkpoint="):
        CASE.run(None, resume=True)
    for name in ("checkpoint_every", "keep"):
        for value in (0, 1.5, True):
            with pytest.raises(SettingError, match=name):
                CASE.run(tmp_path / "new", **{name: value})
    with pytest.raises(SettingError, match="give True or False"):
        CASE.run(tmp_path / "new", resume="false")
    with pytest.raises(SettingError, match="empty text"):
        CASE.run("")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="cannot be written"):
        CASE.run(tmp_path / "file")


def test_one_command_line_can_be_repeated_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In an empty folder resume=True starts anew, and says so; a longer run goes on."""
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO, "flwr"):
        CASE.run(folder, resume=True, num_rounds=2)
    assert "starts anew" in caplog.text
    longer = CASE.run(folder, resume=True)
    assert longer.central_rounds == [3, 4]
    assert_same_run(longer, CASE.run())
    shorter = CASE.run(folder, resume=True, num_rounds=3)
    assert shorter.central_rounds == []
    assert_same_run(shorter, CASE.run(num_rounds=3))
    with pytest.raises(SettingError, match="is to end after round 1"):
        CASE.run(folder, resume=True, num_rounds=1)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    """Rounds between checkpoints, the last round, and how many stay."""
    for every, keep, rounds in ((1, 1, [4]), (3, 3, [3, 4]), (2, 9, [2, 4])):
        folder = tmp_path / f"{every}-{keep}"
        CASE.run(folder, checkpoint_every=every, keep=keep)
        assert sorted(CheckpointFolder(folder).all()) == rounds
        assert {p.name for p in folder.iterdir() if p.name.startswith(".")} == {".lock"}


def test_a_run_that_ended_early_for_fronts_that_stay_is_not_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last aggregation is none of the longer run's: the one before is taken."""
    setting = {"lightweight": Lightweight(prune=0.4, aggregate_every=2, period="round")}
    case = Case(settings=setting, model=net, num_rounds=6)
    folder = tmp_path / "run"
    case.run(folder, num_rounds=5)
    assert sorted(CheckpointFolder(folder).all()) == [2, 4, 5]
    with caplog.at_level(logging.WARNING, "flwr"):
        resumed = case.run(folder, resume=True)
    assert "was the end of a run of 5 rounds" in caplog.text
    assert resumed.central_rounds == [5, 6]
    assert_same_run(resumed, case.run())
    only = tmp_path / "only"
    case.run(only, num_rounds=1)
    with pytest.raises(SettingError, match="was the end of a run of 1 rounds"):
        case.run(only, resume=True)


def test_what_devices_kept_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Moments and residuals on the devices are gone, which is said; the run goes on."""
    case = Case(
        settings={"up": "feedback(inner=topk(fraction=0.2))"},
        device={
            "optimizer": partial(SGD, lr=0.05, momentum=0.9),
            "keep_optimizer": True,
        },
    )
    case.run(tmp_path, breaks_off_in=3, resume=True)
    with caplog.at_level(logging.WARNING, "flwr"):
        resumed = case.run(tmp_path, resume=True)
    text = caplog.text
    assert "the moments of their optimizers start anew on devices 0, 1, 2" in text
    assert "what their codecs remember start anew on devices 0, 1, 2" in text
    assert resumed.result is not None
    assert sorted(resumed.result.train_metrics_clientapp) == [1, 2, 3, 4]


def test_a_checkpoint_is_plain_pytorch(tmp_path: Path) -> None:
    """State dicts that load into the halves, from the run's folder or one round's."""
    case = Case(model=counting)
    run = case.run(tmp_path / "run")
    assert run.result is not None
    found = load_checkpoint(tmp_path / "run")
    assert found.server_round == 4
    back = run.split.back_state()
    assert {n: bits(t) for n, t in found.back.items()} == {
        n: bits(t) for n, t in back.items()
    }
    front, other = counting()
    front.load_state_dict(found.front)
    other.load_state_dict(found.back)
    final = run.result.arrays.to_torch_state_dict()
    builders.assert_same(dict(found.front), dict(final))
    report = run.split.reports[-1]
    assert found.metrics == pytest.approx(report.scalars())
    assert found.metrics["central/total"] == report.central["total"]
    one = load_checkpoint(str(tmp_path / "run" / "round-000002"))
    assert one.server_round == 2
    for nothing in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            load_checkpoint(nothing)


def test_a_checkpoint_joins_the_model(tmp_path: Path) -> None:
    """`cut(...).load` makes one model of it again."""
    model = nn.Sequential(
        OrderedDict(front=builders.halves()[0], back=builders.halves()[1])
    )
    halves = cut(model, at="front")

    def renamed() -> tuple[nn.Module, nn.Module]:
        again = cut(
            nn.Sequential(
                OrderedDict(front=builders.halves()[0], back=builders.halves()[1])
            ),
            at="front",
        )
        return again.front, again.back

    Case(model=renamed).run(tmp_path)
    found = load_checkpoint(tmp_path)
    joined = halves.load(found.front, found.back)
    builders.assert_same(dict(joined.state_dict()), {**found.front, **found.back})


class Holding(strategy.FedAvg):
    """A strategy that remembers something of any kind."""

    def __init__(self, first: Any, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.thing, self._change = first, change

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.thing = self._change(self.thing)
        return super().aggregate_train(server_round, replies)


class Opaque:
    """What nothing is known of, but by pickling."""

    __slots__ = ("n",)

    def __init__(self, n: int) -> None:
        self.n = n


def test_a_strategy_that_remembers_what_cannot_be_stored_is_refused(
    tmp_path: Path,
) -> None:
    """Its attribute is named at the first checkpoint; one that stays is let be."""
    for number, (first, change, text) in enumerate(
        (
            (Opaque(0), lambda o: Opaque(o.n + 1), r"Holding\.thing changes"),
            (None, lambda _: lambda: 0, r"Holding\.thing changes"),
            ([Opaque(0)], lambda o: [Opaque(o[0].n + 1)], r"Holding\.thing changes"),
            (
                None,
                lambda _: RoundReport(1, 1, {}, 0.0),
                r"Holding\.thing is made during",
            ),
        )
    ):
        with pytest.raises(CheckpointError, match=text):
            Case(partial(Holding, first, change)).run(tmp_path / str(number))
    constant = Case(partial(Holding, Opaque(0), lambda o: o))
    constant.run(tmp_path / "constant")
    constant.run(tmp_path / "constant", resume=True)


def test_a_strategy_that_cannot_be_looked_into_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can tell whether an open file matters, so the user is told."""
    with (tmp_path / "log").open("w") as file, caplog.at_level(logging.WARNING, "flwr"):
        Case(partial(Holding, file, lambda f: f)).run(tmp_path / "run")
    assert "hold nothing of Holding.thing" in caplog.text


class Asked(Holding):
    """A strategy that says itself what it remembers."""

    def state_dict(self) -> dict[str, int]:
        return {"n": self.thing.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.thing = Opaque(state["n"])


def test_a_strategy_may_say_itself_what_it_remembers(tmp_path: Path) -> None:
    """`state_dict` and `load_state_dict` are asked where they are there."""
    made: list[Asked] = []

    def make() -> Asked:
        made.append(Asked(Opaque(0), lambda o: Opaque(o.n + 1)))
        return made[-1]

    Case(make).run(tmp_path, breaks_off_in=3, resume=True)
    Case(make).run(tmp_path, resume=True)
    assert made[-1].thing.n == 4


def test_the_best_models_are_kept(tmp_path: Path) -> None:
    """Those of the best round, also of a run that was resumed."""
    best = SaveBest(tmp_path / "best", metric="loss", mode="min")
    whole = CASE.run(tmp_path / "whole", callbacks=(best,))
    losses = {r.server_round: r.evaluation["loss"] for r in whole.split.reports}
    assert best.best_round == min(losses, key=lambda r: losses[r])
    found = load_checkpoint(tmp_path / "best")
    assert found.server_round == best.best_round
    assert found.metrics["evaluate/loss"] == best.best == min(losses.values())
    if best.best_round >= 2:
        at = load_checkpoint(tmp_path / "whole" / f"round-00000{best.best_round}")
        builders.assert_same(found.back, at.back)

    def again() -> SaveBest:
        return SaveBest(tmp_path / "again", metric="loss", mode="min")

    CASE.run(tmp_path / "run", breaks_off_in=3, resume=True, callbacks=(again(),))
    resumed = again()
    CASE.run(tmp_path / "run", resume=True, callbacks=(resumed,))
    assert (resumed.best, resumed.best_round) == (best.best, best.best_round)
    builders.assert_same(load_checkpoint(tmp_path / "again").back, found.back)


def test_a_folder_of_best_models_is_taken_by_one_run(tmp_path: Path) -> None:
    """Neither another run's best models nor the run's own checkpoints are mixed in."""
    CASE.run(callbacks=(SaveBest(tmp_path / "best"),), num_rounds=1)
    with pytest.raises(SettingError, match="best models of another run"):
        CASE.run(callbacks=(SaveBest(tmp_path / "best"),))
    with pytest.raises(SettingError, match="give SaveBest another folder"):
        CASE.run(tmp_path / "run", callbacks=(SaveBest(tmp_path / "run"),))
    with pytest.raises(SettingError, match="no metric 'acuracy'"):
        CASE.run(callbacks=(SaveBest(tmp_path / "typo", metric="acuracy"),))
    with pytest.raises(SettingError, match="mode"):
        SaveBest(tmp_path / "x", mode="best")  # type: ignore[arg-type]


def test_a_run_that_is_no_better_ends_early(tmp_path: Path) -> None:
    """It ends with its Result after that round, and ended stays when resumed."""

    def stop() -> StopEarly:
        return StopEarly("central/total", patience=2, mode="max", min_delta=1e9)

    ended = CASE.run(tmp_path, callbacks=(stop(),))
    assert ended.result is not None
    assert sorted(ended.result.train_metrics_clientapp) == [1, 2, 3]
    assert_same_run(ended, CASE.run(num_rounds=3))
    again = CASE.run(tmp_path, resume=True, callbacks=(stop(),))
    assert again.central_rounds == []
    assert_same_run(ended, again)
    without = CASE.run(tmp_path, resume=True)
    assert without.central_rounds == [4]


def test_what_a_callback_remembers_is_resumed(tmp_path: Path) -> None:
    """Rounds without a better value are counted across the break."""
    stop = partial(StopEarly, "central/total", patience=3, mode="max", min_delta=1e9)
    CASE.run(tmp_path, breaks_off_in=3, resume=True, callbacks=(stop(),))
    ended = CASE.run(tmp_path, resume=True, num_rounds=9, callbacks=(stop(),))
    assert ended.central_rounds == [3, 4]
    other = StopEarly("loss", patience=3)
    with pytest.raises(SettingError, match="watched metric='central/total'"):
        CASE.run(tmp_path, resume=True, num_rounds=9, callbacks=(other,))
    for settings in ({"patience": 0}, {"mode": "up"}, {"min_delta": -1}):
        with pytest.raises(SettingError):
            StopEarly(**settings)


def test_no_round_ends_a_run_while_fronts_are_on_devices(tmp_path: Path) -> None:
    """With fronts that stay, the next aggregation is waited for."""
    setting = {"lightweight": Lightweight(prune=0.4, aggregate_every=3, period="round")}
    case = Case(settings=setting, model=net, num_rounds=9)
    stop = StopEarly("train/devices", patience=1, min_delta=1)
    ended = case.run(tmp_path, callbacks=(stop,))
    assert ended.central_rounds[-1] == 3
    assert load_checkpoint(tmp_path).server_round == 3


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from flwr_slfac.checkpoint import CheckpointFolder, load_checkpoint

folder = CheckpointFolder(Path(sys.argv[1]), keep=1)

def save(number):
    part = {"w": torch.full((1000,), float(number))}
    sections = {"front": part, "back": part, "state": part}
    facts = {"settings": {}, "metrics": {"$dict": []}}
    with folder.held():
        folder.save(number, sections, b"", facts)

save(1)
calls = 0
def counted(work, limit):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **kwargs)
    return call

limit, alive = 0, False
while not alive:
    limit += 1
    child = os.fork()
    if not child:
        for name in ("fsync", "open", "rename", "mkdir", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name), limit))
        save(2)
        os._exit(0)
    alive = os.waitpid(child, 0)[1] == 0
    found = load_checkpoint(folder.path)
    assert set(found.back["w"].tolist()) == {float(found.server_round)}
    print(limit, found.server_round, flush=True)
"""


def test_a_save_that_is_killed_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """At whichever call to the system: what is read is whole."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    rounds = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"1", "2"} == set(rounds)
    assert len(rounds) > 10
    left = {p.name for p in (tmp_path / "run").iterdir()}
    assert left == {".lock", "round-000002"}


FULL = """
import resource, sys
from pathlib import Path
import torch
from flwr_slfac import CheckpointError
from flwr_slfac.checkpoint import CheckpointFolder, load_checkpoint

folder = CheckpointFolder(Path(sys.argv[1]))
def save(number, size):
    part = {"w": torch.ones(size)}
    facts = {"settings": {}, "metrics": {"$dict": []}}
    sections = {"front": {}, "back": part, "state": {}}
    folder.save(number, sections, bytes(size), facts)
save(1, 10)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
for size in (4000, 9990, 20000):
    try:
        save(2, size)
    except CheckpointError as error:
        print(error)
names = [p.name for p in folder.path.iterdir()]
print(load_checkpoint(folder.path).server_round, names)
"""


def test_a_full_disk_ends_the_run_and_harms_nothing(tmp_path: Path) -> None:
    """The error says what to do; nothing is left of the checkpoint."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    *errors, last = done.stdout.splitlines()
    assert len(errors) == 3
    assert all("round-000002 cannot be written" in text for text in errors)
    assert last == "1 ['round-000001']"


HOLDS = """
import sys, time
from pathlib import Path
from flwr_slfac.checkpoint import CheckpointFolder
with CheckpointFolder(Path(sys.argv[1])).held():
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_write_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first one's process to end, and then is refused."""
    monkeypatch.setattr(checkpoint_folder, "_LOCK_WAIT_S", 0.5)
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(SettingError, match="another process"):
            CASE.run(tmp_path, resume=True)
        monkeypatch.undo()
        threading.Timer(1.0, first.kill).start()
        CASE.run(tmp_path, resume=True, num_rounds=1)
