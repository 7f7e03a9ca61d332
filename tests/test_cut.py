"""Laws of cutting a model into a front and a back half."""

import copy
import io
import itertools
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flwr_slfac.cutting import CutPoint, Halves, cut, legal_cuts
from flwr_slfac.errors import CutError
from tests import models

Family = tuple[Callable[[], nn.Module], Callable[[int], Tensor], tuple[str, str, str]]
GPT = {"vocab": 11, "block_size": 8, "dim": 8, "depth": 2, "heads": 2}


def images(batch: int) -> Tensor:
    """Draw images for a model that halves them five times."""
    return torch.randn(batch, 3, 32, 32)


def small_images(batch: int) -> Tensor:
    """Draw images of 8x8."""
    return torch.randn(batch, 3, 8, 8)


def tokens(batch: int) -> Tensor:
    """Draw sequences of six tokens."""
    return torch.randint(0, 11, (batch, 6))


FAMILIES: dict[str, Family] = {
    "resnet": (
        lambda: models.resnet18(width=2),
        small_images,
        ("bn1", "layer2.0", "avgpool"),
    ),
    "vgg": (
        lambda: models.vgg19_bn(width=1),
        images,
        ("features.1", "features.26", "classifier.3"),
    ),
    "vit": (
        lambda: models.vit(8, 4, 8, 2, 2, dropout=0.1),
        small_images,
        ("conv_proj", "blocks.0", "ln"),
    ),
    "gpt": (lambda: models.gpt(**GPT, dropout=0.1), tokens, ("drop", "h.0", "ln_f")),
    "exported gpt": (
        lambda: models.asserting_gpt(**GPT, dropout=0.1),
        tokens,
        ("drop", "h.0", "ln_f"),
    ),
}
CUTS = [(family, at) for family, (_, _, ats) in FAMILIES.items() for at in ats]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit equality is promised on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def example_for(family: str) -> Tensor | None:
    """Give an example to the one family that cannot do without."""
    return FAMILIES[family][1](2) if family.startswith("exported") else None


def equal_states(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states have the same keys and bits."""
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of all modules by parameter name."""
    return {
        name: parameter.grad
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


class Exported(nn.Module):
    """Any model, with a branch that only torch.export can follow."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 1:
            raise ValueError("no features")
        return self.body(x)


def assert_joined_equals(model: nn.Module, halves: Halves, x: Tensor) -> None:
    """Run model and halves on ``x``; outputs, gradients and buffers must agree."""
    model = copy.deepcopy(model)
    for training in (True, False):
        for module in (model, halves.front, halves.back):
            module.train(training).zero_grad()
        torch.manual_seed(1)
        whole = model(x.clone())
        whole.square().sum().backward()
        torch.manual_seed(1)
        joined = halves.back(halves.front(x.clone()))
        joined.square().sum().backward()
        assert torch.equal(joined, whole)
        assert equal_states(gradients(halves.front, halves.back), gradients(model))
        states = halves.front.state_dict() | halves.back.state_dict()
        assert equal_states(states, dict(model.state_dict()))


@pytest.mark.parametrize(("family", "at"), CUTS)
def test_joined_halves_equal_the_model_bit_for_bit(family: str, at: str) -> None:
    """Outputs, gradients and buffers of the joined halves are the model's."""
    build, sample, _ = FAMILIES[family]
    model = build()
    halves = cut(model, at, example_for(family))
    assert_joined_equals(model, halves, sample(3))


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_exported_halves_equal_the_model_bit_for_bit(family: str) -> None:
    """The export path keeps batch norm's mode and the batch size free."""
    build, sample, ats = FAMILIES[family]
    model = Exported(build())
    for at in ats[:2]:
        halves = cut(model, f"body.{at}", sample(1))
        for batch in (2, 5):
            assert_joined_equals(model, copy.deepcopy(halves), sample(batch))


@pytest.mark.parametrize(("family", "at"), CUTS)
def test_split_training_equals_unsplit_training(family: str, at: str) -> None:
    """Twenty momentum steps with a detached cut end in the unsplit model's bits."""
    build, sample, _ = FAMILIES[family]
    model = build()
    halves = cut(model, at, example_for(family))
    sides = (halves.front.train(), halves.back.train())
    model.train()
    optimizers = [
        torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, *sides)
    ]
    for step in range(20):
        x = sample(2)
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.manual_seed(step)
        F.log_softmax(model(x.clone()), -1).square().mean().backward()
        torch.manual_seed(step)
        sent = halves.front(x.clone())
        received = sent.detach().requires_grad_()
        F.log_softmax(halves.back(received), -1).square().mean().backward()
        sent.backward(received.grad)
        for optimizer in optimizers:
            optimizer.step()
    states = halves.front.state_dict() | halves.back.state_dict()
    assert all(torch.isfinite(value).all() for value in states.values())
    assert equal_states(states, model.state_dict())


def test_each_mode_runs_its_own_trace() -> None:
    """``self.training``, as an argument or in a branch, follows the half's mode."""

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(self.a(x), 0.5, training=self.training)
            x = self.b(x)
            if self.training:
                x = x * torch.tensor([1.0, 2.0, 3.0, 4.0])
            return self.c(x) + torch.tensor([0.0, 1.0, 0.0, 1.0])

    model = Moody().eval()
    halves = cut(model, "b")
    assert not halves.front.training
    assert not halves.back.training
    assert_joined_equals(model, halves, torch.randn(3, 4))
    wrapped = Exported(model)
    halves = cut(wrapped, "body.b", torch.ones(2, 4))
    assert_joined_equals(wrapped, halves, torch.randn(3, 4))


def test_inner_training_flags_survive_the_cut() -> None:
    """A batch norm that the caller froze is still frozen in its half."""
    model = models.resnet18(width=2).train()
    model.layer1[0].bn1.eval()
    halves = cut(model, "layer1")
    assert halves.front.training
    assert not halves.front.get_submodule("layer1.0.bn1").training
    assert halves.front.get_submodule("layer1.0.bn2").training


def test_back_does_not_write_into_smashed_data() -> None:
    """A back that begins with an in-place ReLU leaves its input as it was."""
    halves = cut(models.resnet18(width=2), "bn1")
    sent = halves.front(small_images(2))
    before = sent.clone()
    halves.back(sent)
    assert torch.equal(sent, before)


def test_effects_stay_where_they_stand() -> None:
    """An in-place write whose result nobody uses still reaches later readers."""

    class Writer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.register_buffer("seen", torch.zeros(4))
            self.register_buffer("late", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            self.seen.add_(h.detach().sum(0))
            h.add_(1.0)
            h = self.b(h)
            self.late.add_(h.detach().sum(0))
            h.view(-1).mul_(2.0)
            return self.c(h)

    model = Writer()
    for at, example in itertools.product(("a", "b"), (None, torch.ones(2, 4))):
        assert_joined_equals(model, cut(model, at, example), torch.randn(3, 4))
    assert "seen" in cut(model, "b").front.state_dict()
    assert "late" in cut(model, "b").back.state_dict()
    wrapped = Exported(model)
    halves = cut(wrapped, "body.b", torch.ones(2, 4))
    assert_joined_equals(wrapped, halves, torch.randn(3, 4))


def test_structured_outputs_and_defaults_are_kept() -> None:
    """A dictionary of outputs comes back as one; other arguments keep defaults."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(
            self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None
        ) -> dict[str, Tensor]:
            h = self.a(x)
            if mask is not None:
                h = h * mask
            return {"logits": self.b(h) * scale, "h": h}

    model, x = Two(), torch.randn(3, 4)
    for body, prefix in ((model, ""), (Exported(model), "body.")):
        halves = cut(body, f"{prefix}a", x)
        found, expected = halves.back(halves.front(x)), model(x)
        assert equal_states(found, expected)


def test_lstm_is_cut_after_its_sequence() -> None:
    """Of a recurrent layer's tuple, the one value in use is the smashed data."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 4, batch_first=True)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.rnn(x)
            return self.fc(out[:, -1])

    model = Tagger()
    assert_joined_equals(model, cut(model, "rnn"), torch.randn(3, 5, 4))


def test_constants_lie_on_the_side_that_needs_them() -> None:
    """A non-persistent table that both halves read is copied into both."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("table", torch.randn(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            table = self.table * torch.tensor([1.0, 2.0, 3.0, 4.0])
            return self.b(self.a(x * table) * table)

    for model, at in ((Rotary(), "a"), (Exported(Rotary()), "body.a")):
        halves = cut(model, at, torch.ones(2, 4))
        assert_joined_equals(model, halves, torch.randn(3, 4))
        halves.front.to(torch.float64)
        assert {b.dtype for b in halves.front.buffers()} == {torch.float64}
        assert {b.dtype for b in halves.back.buffers()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_state_keys_are_partitioned(family: str) -> None:
    """Every key of the model is in exactly one half, and a checkpoint loads."""
    build, sample, _ = FAMILIES[family]
    model = build()
    points = legal_cuts(model, sample(2))
    for point in points[:: max(1, len(points) // 3)]:
        halves = cut(model, point.name, sample(2))
        front, back = halves.front.state_dict(), halves.back.state_dict()
        assert not front.keys() & back.keys()
        assert front.keys() | back.keys() == model.state_dict().keys()
        other = build().state_dict()
        halves.front.load_state_dict({key: other[key] for key in front})
        halves.back.load_state_dict({key: other[key] for key in back})


def test_unused_modules_go_to_the_back() -> None:
    """Parameters that forward never reads stay loadable, at the back."""
    model = models.resnet18(width=2)
    model.extra = nn.Sequential(nn.Linear(2, 2))
    assert "extra.0.weight" in cut(model, "layer1").back.state_dict()


class Record(dict):
    """Stands where Flower's ArrayRecord stands: a state behind a method."""

    def to_torch_state_dict(self) -> dict[str, Tensor]:
        return self["state"]


def test_load_round_trips() -> None:
    """Both states, floats for counters included, end in the original model."""
    model = models.resnet18(width=2)
    halves = cut(model, "layer2")
    other = models.resnet18(width=2).train()
    other(small_images(4))
    state = other.state_dict()
    front = {k: state[k].double() for k in halves.front.state_dict()}
    front["bn1.num_batches_tracked"] -= 1e-9
    back = {k: state[k] for k in halves.back.state_dict()}
    assert halves.load(Record(state=front), back) is model
    assert equal_states(model.state_dict(), state)


def test_load_is_strict() -> None:
    """A wrong state is refused by the names of its keys, and changes nothing."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    halves = cut(model, "0")
    before = copy.deepcopy(model.state_dict())
    front, back = halves.front.state_dict(), halves.back.state_dict()
    ones = {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3)}
    with pytest.raises(CutError, match=r"back state.*'1.bias' is missing"):
        halves.load(ones, {"1.weight": back["1.weight"]})
    with pytest.raises(CutError, match=r"front state.*'x' is unexpected"):
        halves.load({**front, "x": torch.ones(1)}, back)
    with pytest.raises(CutError, match=r"'0.bias' has shape \(1,\) instead of \(3,\)"):
        halves.load({**front, "0.bias": torch.ones(1)}, back)
    assert equal_states(model.state_dict(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_untouched(family: str) -> None:
    """Cutting and listing change no bit, flag or random state of the caller's."""
    build, sample, (_, at, _) = FAMILIES[family]
    model, x = build().train(), sample(2)
    model.get_submodule(at).eval()
    flags = [m.training for m in model.modules()]
    before, seed = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    kept = x.clone()
    halves = cut(model, at, x)
    legal_cuts(model, x)
    with torch.no_grad():
        for parameter in itertools.chain(
            halves.front.parameters(), halves.back.parameters()
        ):
            parameter.add_(1)
    assert equal_states(model.state_dict(), before)
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), seed)
    assert torch.equal(x, kept)


def test_copies_of_a_half_are_independent() -> None:
    """A deep copy of a half computes the same and shares no memory."""
    front = cut(models.resnet18(width=2), "layer1").front.eval()
    twin, x = copy.deepcopy(front), small_images(2)
    assert torch.equal(twin(x), front(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert front(x).any()
    assert not twin(x).any()


@pytest.mark.parametrize("family", ["resnet", "exported gpt"])
def test_a_half_pickles(family: str) -> None:
    """A half survives torch.save whole, as a simulation engine may ask."""
    build, sample, (_, at, _) = FAMILIES[family]
    front = cut(build(), at, sample(2)).front.eval()
    file = io.BytesIO()
    torch.save(front, file)
    file.seek(0)
    twin, x = torch.load(file, weights_only=False), sample(3)
    assert torch.equal(twin(x), front(x))


def test_exported_halves_refuse_other_sizes() -> None:
    """Sizes that export fixed are checked, since a wrong one may broadcast."""
    halves = cut(models.asserting_gpt(**GPT), "h.0", tokens(2))
    with pytest.raises(CutError, match=r"shape \(N, 6\) but got \(2, 1\)"):
        halves.front(tokens(2)[:, :1])
    with pytest.raises(CutError, match=r"shape \(N, 6, 8\) but got \(2, 1, 8\)"):
        halves.back(torch.ones(2, 1, 8))


def test_an_exported_cut_may_carry_the_batch_elsewhere() -> None:
    """Where nothing reads the batch size, it need not be in dimension 0."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Unflatten(1, (1, 4))
            self.a, self.b = Turn(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.turn(x)))

    class Turn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1)

    model = Exported(Turned())
    halves = cut(model, "body.a", torch.ones(2, 4))
    assert_joined_equals(model, halves, torch.randn(3, 4))


def test_exported_halves_follow_their_input_to_another_device() -> None:
    """No device of the example stays in an exported half."""
    halves = cut(models.asserting_gpt(**GPT), "h.0", tokens(2))
    for half in (halves.front, halves.back):
        sources = [program.source for program in half._programs.values()]
        assert not any("device(type" in source for source in sources)
    sent = halves.front.to("meta")(tokens(3).to("meta"))
    assert halves.back.to("meta")(sent).device.type == "meta"


def test_two_crossing_tensors_are_named_with_the_nearest_legal_cuts() -> None:
    """A cut inside a residual block names the shortcut and where to cut instead."""
    with pytest.raises(CutError) as caught:
        cut(models.resnet18(width=2), "layer1.0.bn1")
    message = str(caught.value)
    assert "`layer1.0.bn1`" in message
    assert "`maxpool`" in message
    assert "'maxpool' before, 'layer1.0' after" in message


def test_an_input_that_crosses_is_named() -> None:
    """A long skip from the input makes every cut below it illegal."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + x

    with pytest.raises(CutError, match=r"the input.*no legal cut"):
        cut(Skip(), "a")


def test_a_size_other_than_the_batch_cannot_cross() -> None:
    """Only dimension 0 can be read off the smashed data."""

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h[:, : x.shape[1]])

    with pytest.raises(CutError, match="the input"):
        cut(Sized(), "a")


def test_a_batch_must_lie_in_dimension_0() -> None:
    """With an example, a batch size read off another dimension is found out."""

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.turn = nn.Flatten(0, 1)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            return self.b(self.turn(self.a(x))).view(n, -1)

    x = torch.ones(3, 5, 4)
    with pytest.raises(CutError, match=r"no batch in dimension 0: \(15, 4\)"):
        cut(Transposed(), "turn", x)
    assert [p.name for p in legal_cuts(Transposed(), x)] == ["a"]


def test_unknown_names_suggest_close_ones() -> None:
    """A misspelt module name is answered with the names it resembles."""
    with pytest.raises(CutError, match=r"no module 'layr2'.*'layer2'"):
        cut(models.resnet18(width=2), "layr2")
    with pytest.raises(CutError, match="no module ''"):
        cut(models.resnet18(width=2), "")


def test_uncalled_modules_are_refused() -> None:
    """A module that forward never calls is no place to cut."""
    model = models.resnet18(width=2)
    model.spare = nn.Linear(2, 2)
    with pytest.raises(CutError, match=r"'spare' is never called.*'layer1'"):
        cut(model, "spare")


def test_the_last_module_is_refused() -> None:
    """A cut that leaves the back nothing to compute is refused."""
    with pytest.raises(CutError, match=r"Nothing is left.*'avgpool' before"):
        cut(models.resnet18(width=2), "fc")


@pytest.mark.parametrize("build", [models.gpt, models.asserting_gpt])
def test_tied_weights_across_the_cut_are_refused(
    build: Callable[..., nn.Module],
) -> None:
    """One parameter on both sides is refused by both of its names."""
    model = build(**GPT, tied=True)
    with pytest.raises(CutError, match=r"'wte.weight' = 'lm_head.weight'"):
        cut(model, "h.0", tokens(2))
    assert legal_cuts(model, tokens(2)) == []


def test_weights_tied_within_a_half_stay_tied() -> None:
    """Two names for one parameter on one side remain one parameter."""
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    model = nn.Sequential(nn.Linear(4, 4), a, b, nn.Linear(4, 2))
    back = cut(model, "0").back
    assert back.get_parameter("1.weight") is back.get_parameter("2.weight")
    with pytest.raises(CutError, match=r"'1.weight' = '2.weight'"):
        cut(model, "1")


def test_models_that_need_an_example_say_so() -> None:
    """Where torch.fx cannot trace, the error asks for example=."""
    with pytest.raises(CutError, match="Pass example="):
        cut(models.asserting_gpt(**GPT), "h.0")


def test_forward_takes_exactly_one_tensor() -> None:
    """A forward with two required inputs is refused."""
    with pytest.raises(CutError, match="exactly one tensor"):
        cut(TwoInputs(), "a")
    with pytest.raises(CutError, match="must be a tensor, not list"):
        cut(models.gpt(**GPT), "drop", [1, 2])


def test_an_example_must_fit_the_model() -> None:
    """An example that the model cannot take is refused by its shape."""
    with pytest.raises(CutError, match=r"example of shape \(2, 5, 8, 8\)"):
        cut(models.resnet18(width=2), "layer1", torch.ones(2, 5, 8, 8))
    with pytest.raises(CutError, match=r"torch.export.*example of shape \(2, 9\)"):
        cut(models.asserting_gpt(**GPT), "h.0", torch.zeros(2, 9, dtype=torch.long))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + y


@pytest.mark.parametrize("kind", ["random", "counter"])
def test_what_torch_fx_would_bake_in_silently_is_refused(kind: str) -> None:
    """Random numbers and buffers outside of the trace ask for torch.export."""

    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if kind == "random":
                x = x + torch.rand(4)
            else:
                self.count += 1
            return self.b(self.a(x))

    with pytest.raises(CutError, match="outside of the trace"):
        cut(Sly(), "a")
    halves = cut(Sly(), "a", torch.ones(2, 4))
    x = torch.ones(3, 4)
    if kind == "random":
        assert not torch.equal(halves.front(x), halves.front(x))
    else:
        halves.front(x)
        assert halves.front.state_dict()["count"] == 1


def test_several_outputs_are_named() -> None:
    """A module that returns two tensors is refused by the names of both."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.c = Pair(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.pair(x)
            return self.c(a + b)

    with pytest.raises(CutError, match=r"several values: `pair.a`, `pair.b`"):
        cut(Sum(), "pair")


@pytest.mark.parametrize("family", FAMILIES)
def test_listed_points_are_those_that_cut_accepts(family: str) -> None:
    """cut() accepts every name and alias that is listed, and no other."""
    build, sample, ats = FAMILIES[family]
    model, x = build(), sample(2)
    points = legal_cuts(model, x)
    listed = {name for p in points for name in (p.name, *p.aliases)}
    assert set(ats) <= listed
    names = [name for name, _ in model.named_modules() if name]
    if family.startswith("exported"):  # an export takes a second
        names = sorted(listed)[:2] + sorted(set(names) - listed)[:1]
    for name in names:
        if name in listed:
            cut(model, name, x)
        else:
            with pytest.raises(CutError):
                cut(model, name, x)


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_and_parameters_add_up_to_the_whole(family: str) -> None:
    """Front and back together have the model's parameters and FLOPs."""
    build, sample, _ = FAMILIES[family]
    model, x = build().eval(), sample(2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x.clone())
    points = legal_cuts(model, x)
    for p in points:
        assert p.front_flops + p.back_flops == counter.get_total_flops()
        assert p.front_params + p.back_params == sum(
            parameter.numel() for parameter in model.parameters()
        )
    middle = points[len(points) // 2]
    halves = cut(model, middle.name, x)
    assert sum(p.numel() for p in halves.front.parameters()) == middle.front_params
    sent = halves.front(x.clone())
    assert tuple(sent.shape) == middle.shape
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        halves.back(sent)
    assert counter.get_total_flops() == middle.back_flops


def test_points_are_listed_in_order_outermost_name_first() -> None:
    """A block and its last ReLU end at one point, which bears the block's name."""
    points = legal_cuts(models.resnet18(width=2), small_images(2))
    names = [p.name for p in points]
    assert names[:3] == ["conv1", "bn1", "relu"]
    assert names[-3:] == ["layer4.0", "layer4", "avgpool"]
    by_name = {p.name: p for p in points}
    assert by_name["layer1"].aliases == ("layer1.1", "layer1.1.relu")
    assert by_name["layer1"].shape == (2, 2, 8, 8)
    flops = [p.front_flops for p in points]
    assert flops == sorted(flops)


def test_a_cut_point_prints_as_a_row() -> None:
    """A printed point shows its name, shape, parameters and share of FLOPs."""
    row = str(CutPoint("layer1", (), (2, 8), 1000, 1, 30, 70))
    assert re.fullmatch(
        r"layer1 +\(2, 8\) +1,000 params, +30.0% of FLOPs in front", row
    )
