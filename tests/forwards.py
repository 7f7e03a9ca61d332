"""Forwards that do more than call layers: what a trace may lose.

Each class has three layers ``a``, ``b`` and ``c`` of width 4, and is cut after ``b``.
"""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


class Three(nn.Module):
    """Three layers, run one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.build()

    def build(self) -> None:
        """Add what a forward needs beside the layers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Reverse(torch.autograd.Function):
    """Gradient reversal with a strength."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.strength * gradient, None


class Both(torch.autograd.Function):
    """Two inputs, two outputs, and a backward that is not the derivative."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b, a + b

    @staticmethod
    def backward(ctx, product, total):
        a, b = ctx.saved_tensors
        return 2 * product * b + total, 3 * product * a + total


class Scaled(torch.autograd.Function):
    """The newer form, with a default argument."""

    @staticmethod
    def forward(x, factor=2.0):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 5 * gradient, None


class Dirty(torch.autograd.Function):
    """Writes into its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.add_(1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Called(torch.autograd.Function):
    """Takes a function, which no graph holds."""

    @staticmethod
    def forward(ctx, x, function):
        return function(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Straight(Three):
    def forward(self, x):
        return self.c(Sign.apply(self.b(Sign.apply(self.a(x)))))


class Reversed(Three):
    def forward(self, x):
        return self.c(Reverse.apply(self.b(Reverse.apply(self.a(x), 0.5)), 0.25))


class TwoResults(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        product, total = Both.apply(h, h.tanh())
        return self.c(product - total)


class NewForm(Three):
    def forward(self, x):
        return self.c(Scaled.apply(self.b(Scaled.apply(self.a(x)))))


class RoundedWeights(Three):
    def forward(self, x):
        weight = Sign.apply(self.a.weight)
        return self.c(self.b(F.linear(x, weight, self.a.bias)))


class FrozenFront(Three):
    def forward(self, x):
        with torch.no_grad():
            h = self.a(x)
        return self.c(self.b(h))


class FrozenBranch(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        with torch.no_grad():
            z = self.c(h)
            with torch.enable_grad():
                z = z + self.c(h)
        return self.c(h) + z


class Decorated(Three):
    @torch.no_grad()
    def frozen(self, x):
        return self.a(x)

    @torch.autocast("cpu", torch.bfloat16)
    def narrow(self, x):
        return self.c(x)

    def forward(self, x):
        return self.narrow(self.b(self.frozen(x))).float()


class ByMode(Three):
    def forward(self, x):
        with torch.set_grad_enabled(not self.training):
            h = self.a(x)
        return self.c(self.b(h))


class Inferred(Three):
    def forward(self, x):
        with torch.inference_mode():
            h = self.a(x)
        return self.c(self.b(h.clone()))


class Narrow(Three):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = self.b(self.a(self.a(x)))
            with torch.autocast("cpu", enabled=False):
                h = self.c(h.float())
            h = self.c(h)
        with torch.autocast("cpu", torch.bfloat16):
            return self.c(h)


class Detached(Three):
    def forward(self, x):
        h = self.b(self.a(x).detach())
        return self.c(h) + self.c(h.detach())


class Aliased(Three):
    def forward(self, x):
        h = self.a(x)
        z = h
        z += 1
        y = self.b(h)
        z = y
        z *= 2
        return self.c(y)


class Viewed(Three):
    def forward(self, x):
        y = self.b(self.a(x))
        z = y.view(-1)
        z -= z.mean()
        w = y[:, 1:]
        w *= 3
        return self.c(y)


class Assigned(Three):
    def forward(self, x):
        h = self.a(x)
        h[:, 0] = 0
        y = self.b(h)
        y[:, 0] = 0
        y[:, 1] += 1
        return self.c(y)


class Into(Three):
    def forward(self, x):
        y = self.b(self.a(x))
        torch.mul(y.detach(), 2, out=y.data)
        return self.c(y)


class InputWritten(Three):
    def forward(self, x):
        x += 1
        return self.c(self.b(self.a(x.mul_(2))))


class Counted(Three):
    def forward(self, x):
        n = x.shape[0]
        m = n
        n += 1
        h = self.b(self.a(x))
        padded = torch.cat([h, h.new_zeros(n, 4)])
        shape = h.shape[:1]
        shape += (2, 2)
        return self.c(padded[:m].view(shape).flatten(1)) * n


class Summed(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        total = torch.zeros(4)
        total += h.sum(0)
        return self.c(h) + total


class Averaged(Three):
    def build(self):
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        h = self.a(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
                self.steps.add_(1)
        return self.c(self.b(h - self.mean))


class Recomputed(Three):
    def forward(self, x):
        return checkpoint(self.c, self.b(self.a(x)), use_reentrant=False)


class Standardized(Three):
    def build(self):
        self.register_buffer("std", torch.rand(4) + 0.5)

    def forward(self, x):
        return self.c(self.b(self.a(x)) / (self.std + 1e-5))


class FrozenNorm(Three):
    """Frozen batch norm written out, as torchvision's."""

    def build(self):
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(4) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        h = self.b(self.a(x))
        return self.c(h * scale + (self.bias - self.running_mean * scale))


class LowRank(Three):
    def build(self):
        self.register_buffer("scaling", torch.tensor(0.5))
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        self.b.requires_grad_(False)

    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h) + self.up(self.down(h)) * self.scaling.square()


class Looped(Three):
    def build(self):
        self.register_buffer("factors", torch.rand(3) + 0.5)

    def forward(self, x):
        h = self.b(self.a(x))
        for factor in self.factors:
            h = h * factor
        return self.c(h) * len(self.factors) / self.factors.shape[0]


class FrozenInside(Three):
    def build(self):
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.inside = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.inside.eval()

    def forward(self, x):
        return self.c(self.inside(self.drop(self.norm(self.b(self.a(x))))))


class FrozenByTrain(Three):
    def build(self):
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval().requires_grad_(False)
        self.drop.train()
        return self

    def forward(self, x):
        return self.c(self.drop(self.norm(self.b(self.a(x)))))


class Lively(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x


class FlagInside(Three):
    def build(self):
        self.lively = Lively()
        self.lively.eval()

    def forward(self, x):
        return self.c(self.lively(self.b(self.a(x))))


class Constants(Three):
    def forward(self, x):
        h = self.c(self.b(self.a(x))) * torch.tensor(2.0)
        h = h + torch.arange(4) * torch.tensor([True, False, True, True])
        h = h + torch.tensor([1j, 2j, 1j, 1j]).conj().imag
        return h + torch.ones(4, 2, dtype=torch.bfloat16).T[0]


class AsksForTypes(Three):
    def build(self):
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        h = self.b(self.a(x))
        if isinstance(h, torch.Tensor):
            h = h * 2
        if torch.is_tensor(h) and not isinstance(h, (tuple, list)):
            h = h + 1
        steps = self.rnn(h[:, None])
        steps = steps[0] if isinstance(steps, tuple) else steps
        n = x.shape[0]
        if isinstance(n, int) and isinstance(x.shape, tuple):
            steps = steps * (n + 1)
        if isinstance(h.chunk(2), tuple):
            steps = steps + 1
        return self.c(steps[:, 0])


# What is refused, and what the message names.


class CoinOfPython(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h * 2 if random.random() < 0.5 else h)


class DroppedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if self.training and np.random.uniform() < 0.01:
            return x
        return self.layer(x)


class LayerDrop(Three):
    def build(self):
        self.inner = DroppedLayer()

    def forward(self, x):
        return self.c(self.inner(self.b(self.a(x))))


class CoinOfTorch(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h * 2 if torch.rand(1) < 0.5 else h)


class OwnGenerator(Three):
    def build(self):
        self.draw = random.Random(0)

    def forward(self, x):
        return self.c(self.b(self.a(x))) * self.draw.random()


HIDDEN = np.random.default_rng(0)


class HiddenGenerator(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x))) * float(HIDDEN.random())


class OnValues(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h * 2 if h.sum() > 0 else h)


class OnBuffer(Three):
    def build(self):
        self.register_buffer("on", torch.tensor(True))

    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h * 2 if self.on else h)


class OnBatch(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h * 2 if x.shape[0] > 3 else h)


class OnParity(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h * 2 if x.shape[0] % 2 == 1 else h)


class OnGradients(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        return self.c(h if torch.is_grad_enabled() else h * 2)


class CountsCalls(Three):
    def build(self):
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.c(self.b(self.a(x))) * self.calls


class Remembers(Three):
    def forward(self, x):
        self.last = self.b(self.a(x))
        return self.c(self.last)


class Caches(Three):
    def build(self):
        self.cache = {}

    def forward(self, x):
        self.cache["h"] = self.b(self.a(x))
        return self.c(self.cache["h"])


class Queues(Three):
    def build(self):
        self.queue = torch.zeros(4)

    def forward(self, x):
        self.queue.mul_(0.5)
        return self.c(self.b(self.a(x))) + self.queue


class OtherData(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        h.data = h.data * 2
        return self.c(h)


class AllParameters(Three):
    def forward(self, x):
        decay = sum(p.square().sum() for p in self.c.parameters())
        return self.c(self.b(self.a(x))) + decay


class WritesInput(Three):
    def forward(self, x):
        h = self.b(self.a(x)).clone()
        Dirty.apply(h)
        return self.c(h)


class TakesFunction(Three):
    def forward(self, x):
        return self.c(Called.apply(self.b(self.a(x)), torch.sin))


class Reentrant(Three):
    def forward(self, x):
        return checkpoint(self.c, self.b(self.a(x)), use_reentrant=True)


class SwitchedByCall(Three):
    def forward(self, x):
        torch.set_grad_enabled(False)
        h = self.a(x)
        torch.set_grad_enabled(True)
        return self.c(self.b(h))


class OwnKernel(Three):
    def forward(self, x):
        h = self.b(self.a(x))[:, None, :, None]
        with sdpa_kernel(SDPBackend.MATH):
            h = F.scaled_dot_product_attention(h, h, h)
        return self.c(h[:, 0, :, 0])


class HalfSaved(Three):
    def forward(self, x):
        hooks = torch.autograd.graph.saved_tensors_hooks
        with hooks(lambda t: t.half(), lambda t: t.float()):
            return self.c(self.b(self.a(x)))


class PartsOfConstant(Three):
    def forward(self, x):
        h = self.b(self.a(x))
        table = torch.zeros(2, 4)
        row = table[0]
        row += h.sum(0)
        return self.c(h) + table.sum(0)


class SharedMemory(Three):
    def build(self):
        self.view = self.a.weight.data

    def forward(self, x):
        return self.c(self.b(self.a(x))) + self.view.sum()


class MergesOnEval(Three):
    def build(self):
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        self.merged = not mode
        return self


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x)


class HookInside(Three):
    def build(self):
        self.inner = Inner()
        self.inner.register_full_backward_hook(lambda m, i, o: (i[0] * 3,))

    def forward(self, x):
        return self.c(self.inner(self.b(self.a(x))))


class HookOnTop(Three):
    def build(self):
        self.register_forward_hook(lambda m, i, o: o * 2)


class HookOnLayer(Three):
    def build(self):
        self.c.register_full_backward_hook(lambda m, i, o: (i[0] * 3,))
        self.c.register_forward_hook(lambda m, i, o: o * 2)


class OwnCall(Three):
    def __call__(self, *args):
        return 2 * super().__call__(*args)
