"""Given an example, cut proves that the joined halves are the model, bit for bit."""

import copy
import logging
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from flwr_slfac.cutting import Halves, cut, legal_cuts
from flwr_slfac.cutting.proof import prove
from flwr_slfac.errors import CutError
from tests import forwards as f
from tests import models

X = torch.ones(3, 4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit equality is promised on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def layers(*sizes: int) -> nn.Sequential:
    """Return linear layers of these sizes."""
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def proved(model: nn.Module, halves: Halves, x: Tensor) -> tuple[str, ...]:
    """Prove halves that a test has changed."""
    return prove(model, (halves.front, halves.back), x)


def test_without_an_example_the_halves_say_what_is_unproven() -> None:
    """Halves are proven by an example only, and say so otherwise."""
    assert cut(layers(4, 4, 2), "0", X).proven
    halves = cut(layers(4, 4, 2), "0")
    assert not halves.proven
    assert "no example" in halves.unproven[0]


def test_the_missing_proof_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A process with many devices is told once, as information."""
    from flwr_slfac.cutting import halves

    halves._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="flwr"):
        for _ in range(3):
            cut(layers(4, 4, 2), "0")
    assert [r.levelname for r in caplog.records] == ["INFO"]


def test_an_output_that_differs_is_named_with_its_distance() -> None:
    """Another weight in a half is found, by name and by how much."""
    model = f.Three()
    halves = cut(model, "b")
    with torch.no_grad():
        halves.back.get_parameter("c.bias").add_(0.5)
    with pytest.raises(
        CutError, match=r"in training\. These differ: the output by 0.5"
    ):
        proved(model, halves, X)


def test_a_gradient_that_differs_is_named() -> None:
    """A half that computes the same outputs but learns otherwise is found."""
    model = f.Three()
    halves = cut(model, "b")
    halves.back.get_submodule("c").register_full_backward_hook(
        lambda module, to, of: (to[0] * 2,)
    )
    with pytest.raises(CutError, match=r"gradient of the input by.*`a.weight` by"):
        proved(model, halves, X)


def test_a_buffer_that_differs_is_named() -> None:
    """A half whose running statistics drift from the model's is found."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    halves = cut(model, "0")
    halves.back.get_submodule("1").momentum = 0.5
    with pytest.raises(CutError, match=r"buffer `1.running_mean` by"):
        proved(model, halves, X)


def test_a_constant_in_place_of_a_buffer_is_found() -> None:
    """What equals a tensor of the state today does not after a checkpoint."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.rand(4) + 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    class Fixed(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor(self.numbers)

    model = nn.Sequential(nn.Linear(4, 4), Scale())
    fixed = Fixed()
    fixed.load_state_dict(model[1].state_dict())
    fixed.numbers = fixed.scale.tolist()
    front = nn.Sequential(copy.deepcopy(model[0]))
    back = nn.Sequential(OrderedDict({"1": fixed}))
    halves = Halves(front, back, model, ())
    with pytest.raises(CutError, match="in training, with another state loaded"):
        proved(model, halves, X)


def test_a_difference_in_evaluation_only_is_found() -> None:
    """Either mode is proved, not only training."""

    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if self.training else x * 2

    model = layers(4, 4, 2)
    back = nn.Sequential(nn.Identity(), copy.deepcopy(model[1]), Moody())
    front = nn.Sequential(copy.deepcopy(model[0]))
    with pytest.raises(CutError, match="in evaluation"):
        proved(model, Halves(front, back, model, ()), X)


@pytest.mark.parametrize("kind", [f.Straight, f.Averaged, f.LayerDrop, f.OnParity])
def test_the_proof_leaves_everything_untouched(kind: type[nn.Module]) -> None:
    """Neither the model nor any random state changes, be it proved or refused."""
    model, x = kind(), torch.randn(3, 4)
    before = copy.deepcopy(model.state_dict())
    flags, kept = [m.training for m in model.modules()], x.clone()
    drawn = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        cut(model, "b", x)
    except CutError:
        assert kind in (f.LayerDrop, f.OnParity)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, kept)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]
    assert (np.random.get_state()[1] == drawn[2]).all()
    assert torch.backends.mha.get_fastpath_enabled() == fused


def test_the_halves_are_as_new_after_the_proof() -> None:
    """Running statistics of the halves begin where the model's do."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    halves = cut(model, "0", X)
    states = halves.front.state_dict() | halves.back.state_dict()
    assert all(torch.equal(states[k], v) for k, v in model.state_dict().items())
    parameters = [*halves.front.parameters(), *halves.back.parameters()]
    assert all(p.grad is None for p in parameters)


def test_one_example_is_enough_for_batch_norm() -> None:
    """A batch of one, which batch norm refuses in training, is taken twice."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert cut(model, "0", X[:1]).proven


def test_a_model_that_cannot_train_on_the_example_is_unproven() -> None:
    """What the model itself refuses is not proved, and the reason is told."""

    class EvaluatesOnly(f.Three):
        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x))
            return self.c(h.view(0, 7) if self.training else h)

    halves = cut(EvaluatesOnly(), "b", X)
    assert not halves.proven
    assert all("the model fails on" in reason for reason in halves.unproven)
    assert {"in training" in reason for reason in halves.unproven} == {True}


def test_a_model_of_fixed_batches_is_proved_on_them() -> None:
    """A model that takes no larger batch is compared on the example's."""

    class Threes(f.Three):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)).view(3, 4))

    assert cut(Threes(), "b", X).proven


def test_a_model_on_the_meta_device_has_no_numbers_to_prove() -> None:
    """Without values only shapes are checked, and the halves say so."""
    model = layers(4, 4, 2).to("meta")
    halves = cut(model, "0", X.to("meta"))
    assert "meta" in halves.unproven[0]
    assert halves.back(halves.front(X.to("meta"))).shape == (3, 2)


def test_legal_cuts_are_those_of_a_proven_trace() -> None:
    """What cut refuses of a forward, the list of cuts refuses, too."""
    with pytest.raises(CutError, match="a larger batch"):
        legal_cuts(f.OnParity(), X)


def test_the_reason_of_the_first_trace_is_kept() -> None:
    """A difference in an exported half names what torch.fx had found."""
    with pytest.raises(CutError, match=r"differ.*torch.fx said: .*is_grad_enabled"):
        cut(f.OnGradients(), "b", X)


class InvertedResidual(nn.Module):
    def __init__(self, of: int, to: int, stride: int) -> None:
        super().__init__()
        self.adds = stride == 1 and of == to
        self.conv = nn.Sequential(
            nn.Conv2d(of, 2 * of, 1, bias=False),
            nn.BatchNorm2d(2 * of),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * of, 2 * of, 3, stride, 1, groups=2 * of, bias=False),
            nn.BatchNorm2d(2 * of),
            nn.ReLU6(inplace=True),
            nn.Conv2d(2 * of, to, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, 2, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.out(torch.cat([x, self.up(F.relu(self.down(x)))], 1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.into = nn.Linear(8, 8)
        self.rnn = kind(8, 8, 2, batch_first=True, dropout=0.1)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(self.into(x))
        return self.out(steps[:, -1])


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x / 0.6 * x.new_empty((x.shape[0], 1)).bernoulli_(0.6)


class Stochastic(f.Three):
    def build(self) -> None:
        self.path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.a(x), 0.3, self.training)
        h = h + self.path(self.b(h))
        return h + self.path(self.c(h))


class Spectrum(f.Three):
    def build(self) -> None:
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        phase = torch.randn(3, dtype=torch.complex64)
        self.register_buffer("phase", phase, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.fft.rfft(self.b(self.a(x))) * self.weight * self.phase
        h = torch.fft.irfft(h, n=4)
        return self.c(torch.where(self.mask, h, 0 * h))


class Twice(f.Three):
    def build(self) -> None:
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(self.norm(self.a(x))))
        return self.c(self.b(x))


class Options(f.Three):
    def forward(
        self,
        x: Tensor,
        *,
        scale: float = 2.0,
        mask: Tensor | None = None,
        **others: int,
    ) -> Tensor:
        h = self.b(self.a(x)) * scale
        return self.c(h if mask is None else h * mask)


def encoder(**options: bool) -> nn.Module:
    """Return two of PyTorch's encoder layers between linear layers."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True, **options)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(8, 8), stack, nn.Linear(8, 2))


def wrapped(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Wrap the weights of a first and a third layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        first, third = wrap(nn.Linear(4, 4)), wrap(nn.Linear(4, 4))
    return nn.Sequential(first, nn.ReLU(), third, nn.Linear(4, 2))


def tied() -> nn.Module:
    """Return a model whose second and third layers share a weight."""
    model = f.Three()
    model.c.weight = model.b.weight
    return model


def of_kind(dtype: torch.dtype) -> nn.Module:
    """Return a model of numbers of one kind."""
    inner = nn.LayerNorm(4) if dtype == torch.bfloat16 else nn.ReLU()
    return nn.Sequential(nn.Linear(4, 4), inner, nn.Linear(4, 2)).to(dtype)


SEQUENCES, IMAGES = (3, 5, 8), (2, 3, 8, 8)
ZOO = {
    "encoder": (encoder, "1.layers.0", SEQUENCES),
    "pre-norm encoder": (lambda: encoder(norm_first=True), "1", SEQUENCES),
    "resnet": (lambda: models.resnet18(width=2), "layer2", IMAGES),
    "mobilenet": (
        lambda: nn.Sequential(
            *(InvertedResidual(3, 4, 2), InvertedResidual(4, 4, 1)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 2)),
        ),
        "1",
        IMAGES,
    ),
    "vit": (lambda: models.vit(8, 4, 8, 2, 2, dropout=0.1), "blocks.0", IMAGES),
    "unet": (UNet, "stem", IMAGES),
    "lstm": (lambda: Recurrent(nn.LSTM), "rnn", SEQUENCES),
    "gru": (lambda: Recurrent(nn.GRU), "into", SEQUENCES),
    "weight norm": (lambda: wrapped(parametrizations.weight_norm), "1", (3, 4)),
    "spectral norm": (lambda: wrapped(parametrizations.spectral_norm), "1", (3, 4)),
    "orthogonal": (lambda: wrapped(parametrizations.orthogonal), "1", (3, 4)),
    "old spectral norm": (lambda: wrapped(nn.utils.spectral_norm), "1", (3, 4)),
    "stochastic depth": (Stochastic, "a", (3, 4)),
    "complex and bool": (Spectrum, "b", (3, 4)),
    "called twice": (Twice, "b", (3, 4)),
    "keywords": (Options, "b", (3, 4)),
    "tied": (tied, "a", (3, 4)),
    "half": (lambda: of_kind(torch.half), "0", (3, 4)),
    "bfloat16": (lambda: of_kind(torch.bfloat16), "0", (3, 4)),
    "double": (lambda: of_kind(torch.double), "0", (3, 4)),
}


@pytest.mark.parametrize("name", ZOO)
def test_common_models_are_proven(name: str) -> None:
    """Halves of the models that people train give the model's bits."""
    build, at, shape = ZOO[name]
    model = build()
    kind = next(model.parameters()).dtype
    x = torch.randn(shape).to(torch.float32 if kind.is_complex else kind)
    assert cut(model, at, x).unproven == ()


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    """Halves are copies, which PyTorch's old weight norm does not allow."""
    with pytest.raises(CutError, match="Sequential cannot be copied"):
        cut(wrapped(nn.utils.weight_norm), "1", X)
