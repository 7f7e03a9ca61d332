"""Examples are the same from every kind of source; damaged ones are named."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("simpy", reason="the clock needs flwr-slfac[simulation]")
pytest.importorskip("flwr_datasets", reason="data needs flwr-slfac[examples]")

from PIL import Image
from simulation.data import central_test, device_data
from simulation.data_sources import Examples, read_examples
from simulation.scenario import read_scenario

from flwr_slfac import SettingError

CLASSES = np.repeat(np.arange(3), 8)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 6, 5)).astype(np.uint8)
SITES = np.array([f"site{k % 2}" for k in range(24)])


def idx(values: Any) -> bytes:
    """Return an array of bytes in the form of MNIST's files."""
    sizes = np.array(values.shape, ">u4").tobytes()
    return bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()


def npz(folder: Path) -> str:
    """Write an .npz."""
    np.savez(folder / "d.npz", x=IMAGES, y=CLASSES, site=SITES)
    return "d.npz"


def idx_files(folder: Path) -> str:
    """Write two pairs of idx files, one of them packed."""
    own = folder / "idx"
    own.mkdir()
    for name, part, pack in (("a", slice(0, 10), bytes), ("b", slice(10, 24), None)):
        end = "" if pack else ".gz"
        for kind, values in (("images-idx3", IMAGES), ("labels-idx1", CLASSES)):
            content = idx(values[part])
            packed = content if pack else gzip.compress(content)
            (own / f"{name}-{kind}-ubyte{end}").write_bytes(packed)
    return "idx"


def image_folder(folder: Path) -> str:
    """Write a folder for each class, in it one for each site."""
    for number, (image, label, site) in enumerate(
        zip(IMAGES, CLASSES, SITES, strict=True)
    ):
        own = folder / "images" / str(label) / site
        own.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(own / f"{number:02}.png")
    return "images"


def hub(folder: Path) -> str:
    """Write a folder in the form of the hub's data sets, of two splits."""
    import datasets

    kinds = {
        "picture": datasets.Image(),
        "digit": datasets.ClassLabel(names=["a", "b", "c"]),
        "site": datasets.Value("string"),
    }
    own = folder / "hub"
    own.mkdir()
    for name, part in (("train", slice(0, 16)), ("test", slice(16, 24))):
        columns = {
            "picture": [Image.fromarray(image) for image in IMAGES[part]],
            "digit": CLASSES[part].tolist(),
            "site": SITES[part].tolist(),
        }
        data = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        data.to_parquet(own / f"{name}-00000-of-00001.parquet")
    return "hub:hub"


def in_order(examples: Examples) -> list[tuple[int, bytes]]:
    """Return class and pixels of all examples, sorted."""
    return sorted(
        (int(y), (255 * x).round().to(torch.uint8).numpy().tobytes())
        for x, y in zip(examples.x, examples.y, strict=True)
    )


SOURCES = [npz, idx_files, image_folder, hub]


@pytest.mark.parametrize("write", SOURCES)
def test_every_source_gives_the_same_examples(
    write: Callable[[Path], str], tmp_path: Path
) -> None:
    """Of whatever kind, a source gives N x C x H x W from 0 to 1 and classes."""
    examples = read_examples(write(tmp_path), tmp_path)
    assert examples.x.shape == (24, 1, 6, 5)
    assert examples.x.dtype is torch.float32
    expected = Examples(
        torch.from_numpy(IMAGES)[:, None] / 255, torch.from_numpy(CLASSES), {}
    )
    assert in_order(examples) == in_order(expected)


@pytest.mark.parametrize(
    ("write", "by"), [(npz, "site"), (image_folder, "folder"), (hub, "site")]
)
def test_sites_are_natural_partitions(
    write: Callable[[Path], str], by: str, tmp_path: Path
) -> None:
    """A column of a source, or the folders in its classes, may be the devices."""
    path = tmp_path / "s.toml"
    path.write_text(
        f'name = "s"\n[data]\nsource = "{write(tmp_path)}"\npartition = "natural"\n'
        f'by = "{by}"\n[devices]\ncount = 2\ntiers = {{ phone = 1.0 }}\n'
        '[channel]\nkind = "plain"\nup_bit_per_s = 1e6\ndown_bit_per_s = 1e6\n'
    )
    scenario = read_scenario(path)
    counts = [len(device_data(scenario, device, 2)) for device in (0, 1)]
    assert min(counts) > 0
    assert sum(counts) + len(central_test(scenario)) == 24


def test_variables_of_the_environment_lead_to_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scenario may leave it to the environment where data is."""
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("SLFAC_TEST_DATA", str(tmp_path / "there"))
    npz(tmp_path / "there")
    assert len(read_examples("$SLFAC_TEST_DATA/d.npz", tmp_path).y) == 24


def damage(kind: str, folder: Path) -> str:
    """Write a source with something wrong; return it."""
    if kind == "no classes":
        np.savez(folder / "d.npz", x=IMAGES)
        return "d.npz"
    if kind == "lengths":
        np.savez(folder / "d.npz", x=IMAGES, y=CLASSES[:5])
        return "d.npz"
    if kind == "objects":
        np.savez(folder / "d.npz", x=IMAGES, y=np.array([None] * 24))
        return "d.npz"
    if kind == "no twin":
        own = idx_files(folder)
        (folder / own / "a-labels-idx1-ubyte").unlink()
        return own
    if kind == "cut short":
        path = folder / idx_files(folder) / "a-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:-3])
        return "idx"
    if kind == "sizes":
        own = image_folder(folder)
        Image.new("L", (9, 9)).save(folder / own / "0" / "large.png")
        return own
    if kind == "no image":
        path = folder / image_folder(folder) / "0" / "broken.png"
        path.write_bytes(b"no picture")
        return "images"
    return "nowhere" if kind == "nowhere" else "hub:no/such/data/set"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no classes", "no 'y'"),
        ("lengths", "N images of one size and N classes"),
        ("objects", "cannot be read"),
        ("no twin", "no a-labels-idx1-ubyte beside it"),
        ("cut short", "cannot be read"),
        ("sizes", "2 sizes in 3 classes"),
        ("no image", "cannot be read"),
        ("nowhere", "nowhere cannot be read"),
        ("hub", "hub:no/such/data/set cannot be read"),
    ],
)
def test_damaged_sources_are_named(kind: str, said: str, tmp_path: Path) -> None:
    """What cannot be read says which source it is, and what is wrong."""
    with pytest.raises(SettingError, match=said):
        read_examples(damage(kind, tmp_path), tmp_path)
