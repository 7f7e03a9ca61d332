"""What a forward does beside calling layers is carried by its halves, or refused."""

import copy
import dataclasses
import io
import random
import threading
import warnings
from collections import OrderedDict, namedtuple
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from flwr_slfac.cutting import cut
from flwr_slfac.errors import CutError
from tests import forwards as f

CARRIED = [
    *(f.Straight, f.Reversed, f.TwoResults, f.NewForm, f.RoundedWeights),
    *(f.FrozenFront, f.FrozenBranch, f.Decorated, f.ByMode, f.Inferred, f.Narrow),
    *(f.Detached, f.Aliased, f.Viewed, f.Assigned, f.Into, f.InputWritten),
    *(f.Counted, f.Summed, f.Recomputed, f.HookOnLayer, f.AsksForTypes, f.Constants),
    *(f.Standardized, f.FrozenNorm, f.LowRank, f.Looped),
]
EXPORTED = [
    *(f.FrozenFront, f.FrozenBranch, f.ByMode, f.Narrow, f.Detached, f.Aliased),
    *(f.Viewed, f.Assigned, f.Summed, f.Standardized),
]
# What is found without an example, and what is found with one.
SET = "forward sets"
REFUSED = [
    (f.CoinOfPython, "Python's random", "Python's random in training"),
    (f.LayerDrop, "forward of `inner` draws from numpy.random", "numpy.random"),
    (f.CoinOfTorch, "random numbers outside of the trace", "random numbers"),
    (f.OwnGenerator, "the generator `draw`", "the generator `draw`"),
    (f.HiddenGenerator, "not the same each time, first at `mul`", "another each time"),
    (f.OnValues, "control flow", "data-dependent"),
    (f.OnBuffer, "control flow", "data-dependent"),
    (f.OnBatch, "control flow", "branches on the size of its batch.*from 2 to 3"),
    (f.OnParity, "control flow", "a larger batch.*the output by"),
    (f.OnGradients, "is_grad_enabled", "without gradients.*the output by"),
    (f.CountsCalls, rf"{SET} `calls`.*\(forward, forwards.py:\d+\)", f"{SET} `calls`"),
    (f.Remembers, f"{SET} `last`", f"{SET} `last`"),
    (f.Caches, "forward changes `cache`", r"\bcache\b"),
    (f.Queues, "`queue`", "`queue`"),
    (f.OtherData, f"{SET} `data` of a tensor", f"{SET} `data` of a tensor"),
    (f.AllParameters, "computes with `c.weight` outside of the trace", None),
    (f.WritesInput, "autograd function Dirty writes into its input", "Dirty"),
    (f.TakesFunction, "autograd function Called has an argument", "Called"),
    (f.Reentrant, "set use_reentrant=False", "set use_reentrant=False"),
    (f.SwitchedByCall, "switches gradients by a call", None),
    (f.OwnKernel, "sets the kernels of attention", "the output by"),
    (f.HalfSaved, "saved_tensors_hooks", "the gradient of `a.weight` by"),
    (f.PartsOfConstant, "a constant after writing into it", None),
    (f.SharedMemory, "`view` and `a.weight` share memory", "share memory"),
    (f.MergesOnEval, "train.. of the model also changes `merged`", "`merged`"),
    (f.HookInside, "`inner` has a backward hook", "a backward hook"),
    (f.HookOnTop, "the model itself has a forward hook", "a forward hook"),
    (f.OwnCall, "OwnCall overrides __call__", "overrides __call__"),
]


class Exported(nn.Module):
    """Any model, with a branch that only torch.export can follow."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 1:
            raise ValueError("no features")
        return self.body(x)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit equality is promised on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def assert_trains_alike(model: nn.Module, at: str, example: Tensor | None) -> None:
    """Take five steps with the model and with its halves, and evaluate both."""
    halves = cut(model, at, example)
    model = copy.deepcopy(model)
    sides = (halves.front, halves.back)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, 0.9) for m in (model, *sides)]
    for side in sides:
        side.train()
    for step in range(5):
        x = torch.randn(3, 4)
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.manual_seed(step)
        whole = model(x.clone())
        whole.square().mean().backward()
        torch.manual_seed(step)
        sent = halves.front(x.clone())
        received = sent.detach().requires_grad_()
        joined = halves.back(received)
        joined.square().mean().backward()
        if sent.requires_grad:
            sent.backward(received.grad)
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(joined, whole)
    states = halves.front.state_dict() | halves.back.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(states[name], tensor), name
    for module in (model, *sides):
        module.eval()
    x = torch.randn(3, 4)
    with torch.no_grad():
        torch.manual_seed(9)
        whole = model(x.clone())
        torch.manual_seed(9)
        assert torch.equal(halves.back(halves.front(x.clone())), whole)


@pytest.mark.parametrize("example", [None, torch.ones(3, 4)], ids=["plain", "proved"])
@pytest.mark.parametrize("kind", CARRIED, ids=lambda k: k.__name__)
def test_what_is_carried_trains_as_the_model_does(
    kind: type[nn.Module], example: Tensor | None
) -> None:
    """Custom backwards, contexts, aliases and buffers end in the model's bits."""
    assert_trains_alike(kind(), "b", example)


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda k: k.__name__)
def test_what_is_exported_trains_as_the_model_does(kind: type[nn.Module]) -> None:
    """The contexts that torch.export writes as graphs of their own are kept."""
    assert_trains_alike(Exported(kind()), "body.b", torch.ones(3, 4))


@pytest.mark.parametrize(("kind", "plain", "proved"), REFUSED)
def test_what_cannot_be_carried_is_refused_by_name(
    kind: type[nn.Module], plain: str, proved: str | None
) -> None:
    """What a trace would lose is named, with and without an example."""
    with pytest.raises(CutError, match=plain):
        cut(kind(), "b")
    if proved is not None:
        with pytest.raises(CutError, match=f"(?s){proved}"):
            cut(kind(), "b", torch.ones(3, 4))


@pytest.mark.parametrize("kind", [f.PartsOfConstant, f.SwitchedByCall])
def test_what_only_export_carries_is_proved_there(kind: type[nn.Module]) -> None:
    """What torch.fx is refused, torch.export may carry, given an example."""
    assert_trains_alike(kind(), "b", torch.ones(3, 4))


@pytest.mark.parametrize(
    "kind", [f.Straight, f.Inferred, f.HookOnLayer], ids=lambda k: k.__name__
)
def test_export_refuses_what_it_would_lose(kind: type[nn.Module]) -> None:
    """A backward, inference mode and hooks do not pass through torch.export."""
    with pytest.raises(CutError, match=r"Sign|inference_mode|hook"):
        cut(Exported(kind()), "body.b", torch.ones(3, 4))


@pytest.mark.parametrize(
    "kind",
    [f.Standardized, f.FrozenNorm, f.LowRank, f.Looped, f.Averaged],
    ids=lambda k: k.__name__,
)
@pytest.mark.parametrize("training", [True, False])
def test_a_checkpoint_loaded_later_takes_effect(
    kind: type[nn.Module], training: bool
) -> None:
    """What is computed from buffers is computed anew, from what was loaded."""
    model = kind()
    halves = cut(model, "b")
    other = kind()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    state = other.state_dict()
    for half in (halves.front, halves.back):
        half.load_state_dict({key: state[key] for key in half.state_dict()})
        half.train(training)
    x = torch.randn(3, 4)
    assert torch.equal(halves.back(halves.front(x)), other.train(training)(x))


def test_buffers_written_in_a_forward_are_the_models() -> None:
    """Running means under no_grad are those of the model after every batch."""
    model = f.Averaged()
    halves = cut(model, "b", torch.ones(3, 4))
    assert halves.proven
    for _ in range(3):
        x = torch.randn(3, 4)
        assert torch.equal(halves.back(halves.front(x)), model(x))
        assert torch.equal(halves.front.get_buffer("mean"), model.mean)
        assert halves.front.get_buffer("steps") == model.steps


@pytest.mark.parametrize("example", [None, torch.ones(3, 4)], ids=["plain", "proved"])
@pytest.mark.parametrize(
    "kind", [f.FrozenInside, f.FrozenByTrain, f.FlagInside], ids=lambda k: k.__name__
)
def test_frozen_modules_stay_frozen_in_training(
    kind: type[nn.Module], example: Tensor | None
) -> None:
    """Neither ``eval()`` of a module nor a ``train`` of the model's own is lost."""
    model = kind()
    if kind is f.FrozenByTrain:
        model.train()
    assert_trains_alike(model, "b", example)
    if example is not None:
        assert_trains_alike(Exported(model), "body.b", example)


def test_modules_left_in_training_stay_there_in_evaluation() -> None:
    """Dropout that draws in evaluation, too, does so in its half."""
    model = f.FrozenInside().eval()
    model.drop.train()
    halves = cut(model, "b", torch.ones(3, 4))
    halves.back.train().eval()
    assert halves.back.get_submodule("drop").training
    assert not halves.back.get_submodule("norm").training


def test_a_wrapper_of_a_model_in_evaluation_freezes_nothing() -> None:
    """If every module but the new wrapper evaluates, the model evaluates."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).eval()
    back = cut(Exported(model), "body.0", torch.ones(3, 4)).back.train()
    before = back.get_buffer("body.1.running_mean").clone()
    back(torch.randn(3, 4))
    assert not torch.equal(back.get_buffer("body.1.running_mean"), before)


def test_halves_with_contexts_and_functions_are_copied_and_pickled() -> None:
    """A half's program survives deepcopy and torch.save, contexts and all."""
    for kind in (f.Reversed, f.FrozenBranch, f.Narrow, f.Assigned):
        halves = cut(kind(), "b")
        file = io.BytesIO()
        torch.save(halves.back, file)
        file.seek(0)
        h = torch.randn(3, 4, requires_grad=True)
        for twin in (copy.deepcopy(halves.back), torch.load(file, weights_only=False)):
            expected = torch.autograd.grad(halves.back(h).sum(), h)
            assert torch.equal(torch.autograd.grad(twin(h).sum(), h)[0], expected[0])


def test_a_failing_context_is_left() -> None:
    """A half that raises inside no_grad leaves gradients as they were."""
    front = cut(f.FrozenFront(), "b").front
    with pytest.raises(RuntimeError):
        front(torch.ones(3, 5))
    assert torch.is_grad_enabled()


Pair = namedtuple("Pair", "logits hidden")


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda y, h: (y, {"h": [h]}),
        lambda y, h: Pair(y, h),
        lambda y, h: Output(y, h),
        lambda y, h: OrderedDict(logits=y, hidden=h),
    ],
    ids=["nested", "namedtuple", "dataclass", "OrderedDict"],
)
def test_outputs_keep_their_type(make) -> None:
    """A model's output is of the same type, with the same parts, from its halves."""

    class Structured(f.Three):
        def forward(self, x):
            h = self.b(self.a(x))
            return make(self.c(h), h * 2)

    model, x = Structured(), torch.randn(3, 4)
    halves = cut(model, "b", x)
    assert halves.proven
    assert type(halves.back(halves.front(x))) is type(model(x))


def test_what_is_traced_leaves_torch_as_it_was() -> None:
    """Whether a cut succeeds or not, torch's own classes are what they were."""
    owners = {
        torch.autograd.Function: "apply",
        nn.Module: "__setattr__",
        torch.no_grad: "__enter__",
        torch.autocast: "__exit__",
        torch.autograd.graph.saved_tensors_hooks: "__enter__",
    }
    before = [vars(owner)[name] for owner, name in owners.items()]
    cut(f.Straight(), "b", torch.ones(3, 4))
    for kind in (f.CountsCalls, f.HalfSaved, f.SwitchedByCall):
        with pytest.raises(CutError):
            cut(kind(), "b")
    assert [vars(owner)[name] for owner, name in owners.items()] == before
    assert torch.is_grad_enabled()


def test_scripted_compiled_and_lazy_models_are_refused() -> None:
    """What is no Python forward over tensors is refused, and told what to do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    with pytest.raises(
        CutError, match=r"the model is a ScriptModule.*before torch.jit"
    ):
        cut(scripted, "0")
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.compile(plain)
    with pytest.raises(CutError, match=r"compiled by torch.compile.*Cut the model"):
        cut(compiled, "0")
    plain[1].compile()
    with pytest.raises(CutError, match="`1` is compiled"):
        cut(plain, "0")
    with pytest.raises(CutError, match=r"`1.weight` is not initialized.*Run a batch"):
        cut(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2)), "0")


def test_draws_of_other_threads_are_not_the_models() -> None:
    """A server whose other threads draw from Python's random can cut any model."""
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        for _ in range(5):
            assert cut(model, at="0", example=torch.ones(2, 3)).proven
    finally:
        stop.set()
        thread.join()
