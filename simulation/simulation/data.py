"""What devices train on, dealt out by flwr-datasets, and what the server tests on."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import TensorDataset

from flwr_slfac import SettingError
from simulation.data_sources import Examples, read_examples
from simulation.draws import generator
from simulation.scenario import Scenario
from simulation.scenario_training import Data

# Our choice: a device of fewer examples says little, and batch norm needs two.
_FEWEST_EXAMPLES = 4


@cache
def _split(source: str, folder: Path, share: float, seed: int) -> tuple[Any, Any]:
    """Return what devices share, and what the server tests on."""
    whole = read_examples(source, folder)
    order = generator(seed, "test-split").permutation(len(whole.y))
    num_test = max(1, round(share * len(whole.y)))
    return whole.take(np.sort(order[num_test:])), whole.take(np.sort(order[:num_test]))


def central_test(scenario: Scenario) -> TensorDataset:
    """Return the examples that no device sees.

    Raises
    ------
    SettingError
        If the data cannot be read.
    """
    test: Examples = _both(scenario)[1]
    return test.data_set()


def require_shape(scenario: Scenario) -> None:
    """Refuse a model that takes inputs of another shape than the data has.

    Raises
    ------
    ScenarioError
        If it does.
    """
    found = tuple(central_test(scenario).tensors[0].shape[1:])
    wanted = scenario.model.input_shape
    if found != wanted:
        raise scenario.error(
            "model.input_shape",
            f"is {wanted}, and {scenario.data.source} has {found}; take another model "
            "(build, input_shape), or other data",
        )


def device_data(scenario: Scenario, device: int, num_devices: int) -> TensorDataset:
    """Return what one device trains on: a function of scenario, seed and device.

    Parameters
    ----------
    scenario : Scenario
        What is dealt, and how.
    device, num_devices : int
        Which device of how many.

    Raises
    ------
    SettingError
        If the data cannot be read, or has too little for so many devices.
    """
    train: Examples = _both(scenario)[0]
    own = scenario.data
    if own.partition == "drawn":
        draws = generator(scenario.seed, "data", device)
        count = min(own.per_device, len(train.y))
        places = np.sort(draws.permutation(len(train.y))[:count])
        return train.take(places).data_set()
    dealt = _dealt(own, scenario.path.parent, scenario.seed, num_devices)
    return train.take(dealt.load_partition(device)["index"]).data_set()


def _both(scenario: Scenario) -> tuple[Any, Any]:
    own = scenario.data
    return _split(own.source, scenario.path.parent, own.test_share, scenario.seed)


@cache
def _dealt(own: Data, folder: Path, seed: int, num_devices: int) -> Any:
    """Return the partitioner that deals out to so many devices."""
    from datasets import Dataset

    train = _split(own.source, folder, own.test_share, seed)[0]
    count = len(train.y)
    if count < _FEWEST_EXAMPLES * num_devices and own.partition != "natural":
        raise SettingError(
            f"{count} examples are too few for {num_devices} devices; take "
            "partition = 'drawn', in which devices may have the same ones"
        )
    columns: dict[str, Any] = {"index": range(count), "label": train.y.tolist()}
    if own.by:
        if own.by not in train.columns:
            known = ", ".join(train.columns) or "none"
            raise SettingError(f"by is {own.by!r}; the data has columns: {known}")
        columns[own.by] = [str(value) for value in train.columns[own.by]]
    dealt = _partitioner(own, seed, num_devices, count)
    dealt.dataset = Dataset.from_dict(columns)
    if dealt.num_partitions != num_devices:
        raise SettingError(
            f"{own.by} has {dealt.num_partitions} values and there are {num_devices} "
            "devices; natural partitions are one a value"
        )
    return dealt


def _partitioner(own: Data, seed: int, num_devices: int, count: int) -> Any:
    from flwr_datasets import partitioner as dealers

    if own.partition == "iid":
        return dealers.IidPartitioner(num_devices)
    if own.partition == "dirichlet":
        fewest = max(_FEWEST_EXAMPLES, min(20, count // (4 * num_devices)))
        return dealers.DirichletPartitioner(
            num_devices, "label", own.alpha, min_partition_size=fewest, seed=seed
        )
    if own.partition == "shard":
        return dealers.ShardPartitioner(
            num_devices, "label", num_shards_per_partition=own.shards, seed=seed
        )
    return dealers.NaturalIdPartitioner(own.by)


def epochs_for(num_examples: int, batch_size: int, num_steps: int) -> int:
    """Return the passes over its data that a device needs for so many steps.

    Examples
    --------
    >>> epochs_for(100, 32, 10)
    4
    """
    full, rest = divmod(num_examples, batch_size)
    return math.ceil(num_steps / max(1, full or (rest and 1)))
