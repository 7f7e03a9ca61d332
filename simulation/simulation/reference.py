"""The model that speeds are measured on, and plans are made for by default."""

from torch import Tensor, nn
from torch.nn import functional

# VGG-19's stages (Simonyan and Zisserman, 2015): convolutions, and a quarter of its
# channels.
_VGG_STAGES = ((2, 16), (2, 32), (4, 64), (4, 128), (4, 128))
# Channels of the three stages: a residual network for 32 x 32 images (He et al., 2016).
_STAGES = (16, 32, 64)
INPUT_SHAPE = (3, 32, 32)


class Block(nn.Module):
    """Two convolutions with batch norm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return an image of half the size where the stride is 2."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def small_resnet(channels: int = 3) -> nn.Module:
    """Return a residual network of three stages, 10 classes.

    Parameters
    ----------
    channels : int (default: 3)
        Of its images.

    Returns
    -------
    nn.Module
        With modules ``stem, layer1, layer2, layer3, head`` to cut after.
    """
    stem = nn.Sequential(
        nn.Conv2d(channels, _STAGES[0], 3, 1, 1, bias=False), nn.ReLU()
    )
    model = nn.Sequential()
    model.add_module("stem", stem)
    inputs = _STAGES[0]
    for number, outputs in enumerate(_STAGES, start=1):
        stride = 1 if outputs == inputs else 2
        model.add_module(f"layer{number}", Block(inputs, outputs, stride))
        inputs = outputs
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10)))
    return model


def digits_resnet() -> nn.Module:
    """Return the same network on the 1 x 8 x 8 images of scikit-learn's digits."""
    return small_resnet(channels=1)


def large_digits_resnet() -> nn.Module:
    """Return the network on digits enlarged to 32 x 32, as costly as on photographs."""
    model = nn.Sequential()
    model.add_module("enlarge", nn.Upsample(scale_factor=4))
    for name, module in small_resnet(channels=1).named_children():
        model.add_module(name, module)
    return model


def large_digits_vgg19_bn() -> nn.Module:
    """Return a VGG-19 with batch norm, a quarter as wide, on digits of 32 x 32.

    Returns
    -------
    nn.Module
        With modules ``stage1`` to ``stage5``, each up to its pooling, to cut after.
    """
    model = nn.Sequential()
    model.add_module("enlarge", nn.Upsample(scale_factor=4))
    inputs = 1
    for number, (depth, outputs) in enumerate(_VGG_STAGES, start=1):
        layers: list[nn.Module] = []
        for _ in range(depth):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        stage = nn.Sequential(*layers, nn.MaxPool2d(2))
        model.add_module(f"stage{number}", stage)
    model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10)))
    return model
