"""Plain PyTorch models for tests and benchmarks, with torchvision's module names.

They know nothing of this package: what can cut them can cut a user's model.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``relu`` is one module, called twice."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False),
                nn.BatchNorm2d(planes),
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet of basic blocks (He et al., 2015), laid out as torchvision's."""

    def __init__(
        self,
        depths: tuple[int, ...],
        num_classes: int,
        in_channels: int,
        width: int,
        small_input: bool,
    ) -> None:
        super().__init__()
        if small_input:
            self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_input else nn.MaxPool2d(3, 2, 1)
        planes = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(BasicBlock(planes, width * 2**i, stride))
                planes = width * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    small_input: bool = True,
) -> nn.Module:
    """Build a ResNet-18; ``small_input`` takes the 3x3 stem without pooling."""
    return ResNet((2, 2, 2, 2), num_classes, in_channels, width, small_input)


class VGG(nn.Module):
    """VGG with batch normalization (Simonyan and Zisserman, 2014)."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for multiple, repeats in ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)):
            for _ in range(repeats):
                layers.append(nn.Conv2d(channels, width * multiple, 3, padding=1))
                layers.append(nn.BatchNorm2d(width * multiple))
                layers.append(nn.ReLU(inplace=True))
                channels = width * multiple
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        hidden = width * 8
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def vgg19_bn(num_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Module:
    """Build a VGG-19 with batch normalization; images of 32x32 and larger."""
    return VGG(num_classes, in_channels, width)


class Attention(nn.Module):
    """Multi-head self attention, causal or not."""

    def __init__(self, dim: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=2)
        q = q.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        k = k.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        v = v.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
        )
        return self.proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, causal, dropout)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.ln_1(x)))
        return x + self.drop(self.mlp(self.ln_2(x)))


class ViT(nn.Module):
    """Vision transformer with a class token (Dosovitskiy et al., 2020)."""

    def __init__(
        self,
        image_size: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        num_classes: int,
        in_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        tokens = (image_size // patch) ** 2 + 1
        self.conv_proj = nn.Conv2d(in_channels, dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(dim, heads, causal=False, dropout=dropout) for _ in range(depth))
        )
        self.ln = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv_proj(x).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1) + self.pos_embedding
        return self.head(self.ln(self.blocks(self.dropout(tokens)))[:, 0])


def vit(
    image_size: int = 32,
    patch: int = 4,
    dim: int = 192,
    depth: int = 6,
    heads: int = 3,
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
) -> nn.Module:
    """Build a vision transformer; the class token is expanded by ``x.shape[0]``."""
    return ViT(image_size, patch, dim, depth, heads, num_classes, in_channels, dropout)


class GPT(nn.Module):
    """Decoder of nanoGPT's layout: token ids ``(N, T)`` to logits ``(N, T, V)``."""

    def __init__(
        self,
        vocab: int,
        block_size: int,
        dim: int,
        depth: int,
        heads: int,
        tied: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.wte = nn.Embedding(vocab, dim)
        self.wpe = nn.Embedding(block_size, dim)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(
            Block(dim, heads, causal=True, dropout=dropout) for _ in range(depth)
        )
        self.ln_f = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, idx: Tensor) -> Tensor:
        _, T = idx.shape
        pos = torch.arange(T, device=idx.device)
        x = self.drop(self.wte(idx) + self.wpe(pos))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class AssertingGPT(GPT):
    """The same decoder with a forward that ``torch.fx.symbolic_trace`` refuses."""

    def forward(self, idx: Tensor) -> Tensor:
        _, T = idx.shape
        limit = self.block_size
        assert limit >= T, f"{T} tokens, but at most {limit}"
        pos = torch.arange(T, device=idx.device)
        x = self.wte(idx) + self.wpe(pos)
        if x.shape[-1] > 1:
            x = self.drop(x)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def gpt(
    vocab: int = 65,
    block_size: int = 64,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    tied: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """Build a decoder; ``tied`` shares the head's weight with the token embedding."""
    return GPT(vocab, block_size, dim, depth, heads, tied, dropout)


def asserting_gpt(
    vocab: int = 65,
    block_size: int = 64,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    tied: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """Build a decoder that asserts on its length, so that only export traces it."""
    return AssertingGPT(vocab, block_size, dim, depth, heads, tied, dropout)
