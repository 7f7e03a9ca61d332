"""What both sides remember of samples, in files while a run lasts."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flwr_slfac import Device
from flwr_slfac.codec import Memory, Temporal, Waterfill, encode
from flwr_slfac.errors import SettingError
from flwr_slfac.split import Limits, LocalResult
from flwr_slfac.split.recalled_samples import RecalledSamples
from flwr_slfac.tensor_files import is_in_file
from tests.codec.test_sample_files import mapped
from tests.split import builders
from tests.split.test_recalled_samples import Watching, train

small = Temporal(Waterfill(nrmse=0.2), max_bytes=6000, bits=8)


def run(folder: Path | None, **settings: Any) -> tuple[LocalResult, Watching]:
    """Train with samples in a folder on all sides, or in memory."""
    device = {**settings.pop("device", {}), "sample_folder": folder}
    return train(device=device, limits=Limits(sample_folder=folder), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pipeline_depth": 1, "scheme": "sequential"},
        {"up": small, "device": {"epochs": 2}},
        {"num_rounds": 4, "lost": {(1, 2): 1, (2, 3): 3}},
        {"num_rounds": 4, "forgets": frozenset({(1, 3)})},
    ],
)
def test_a_run_is_that_of_memory(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The same frames and weights, lost devices too; all devices share a folder."""
    (plain, one), (found, other) = run(None, **settings), run(tmp_path, **settings)
    assert one.frames == other.frames
    for name, value in plain.front.items():
        assert torch.equal(found.front[name], value)
    for half in other._halves.values():
        assert half.kept is not None
        rows = {
            name: t
            for name, t in half.kept["memory"].items()
            if name.startswith("temporal.rows.")
        }
        assert rows
        assert all(is_in_file(t) for t in rows.values())
    assert list(tmp_path.iterdir()) == []
    assert mapped(tmp_path) > 0
    del found, other, half, rows
    assert mapped(tmp_path) == 0


def test_a_resumed_run_is_that_of_memory(tmp_path: Path) -> None:
    """A checkpoint holds the rows: the run goes on in memory, or in files again."""
    whole, _ = run(None, num_rounds=4)
    for folder in (None, tmp_path):
        saved = tmp_path / f"run-{folder is None}"
        run(tmp_path, num_rounds=2, checkpoint=saved)
        found, link = run(folder, num_rounds=4, checkpoint=saved, resume=True)
        assert link.begun_anew() == []
        for name, value in whole.front.items():
            assert torch.equal(found.front[name], value)


def test_samples_of_a_saved_run_move_at_once(tmp_path: Path) -> None:
    """Those of devices that do not take part any more do not stay in memory."""
    memory = Memory()
    encode(torch.ones(4, 3), small, memory=memory, samples=range(4))
    before = dict(memory)
    samples = RecalledSamples()
    samples.load({3: memory}, tmp_path)
    (found,) = samples.state().values()
    assert is_in_file(found["temporal.rows.0"])
    assert memory == before
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    """By name, on either side, before training."""
    front, _ = builders.halves()
    (plain,) = builders.devices(front, [24])
    file = tmp_path / "file"
    file.write_text("")
    for folder in (tmp_path / "none", str(file)):
        with pytest.raises(SettingError, match="sample_folder"):
            Limits(sample_folder=folder)
        with pytest.raises(SettingError, match="sample_folder"):
            Device(front, plain.optimizer, plain.train_set, sample_folder=folder)
