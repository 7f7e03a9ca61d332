"""A run's configuration: which scenario, and what of it is to be otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr_slfac import SettingError
from simulation.scenario import SCENARIOS, Scenario, read_scenario
from simulation.scenario_training import Training

# Keys of the run configuration that stand for one of [training]; "" and 0 leave it.
OVERRIDES = {
    "scheme": "scheme",
    "cut": "cut",
    "device-cuts": "device_cuts",
    "device-codecs": "device_codecs",
    "device-batches": "device_batches",
    "device-pruning": "device_pruning",
    "period": "period",
    "codec-up": "codec_up",
    "codec-down": "codec_down",
    "lightweight": "lightweight",
    "sampling": "sampling",
    "num-rounds": "num_rounds",
    "num-steps": "num_steps",
    "batch-size": "batch_size",
    "devices-per-round": "devices_per_round",
    "learning-rate": "learning_rate",
}


def find(name: str) -> Path:
    """Return a scenario's path: a file, or the name of one that ships."""
    shipped = SCENARIOS / f"{name}.toml"
    return shipped if shipped.exists() and not Path(name).exists() else Path(name)


@dataclass(frozen=True)
class RunSettings:
    """What one run is to do.

    Parameters
    ----------
    scenario : Scenario
        With what the configuration changes in it.
    output_folder : str
        Where results go; empty for a new temporary folder.
    listen : str
        Where a deployed run's streams are waited for; empty for Flower's messages.
    """

    scenario: Scenario
    output_folder: str
    listen: str = ""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "RunSettings":
        """Read Flower's run configuration.

        ``scenario`` is the name of one that ships or an absolute path;
        ``scenario-text`` is what is in that file, where it was read on another machine.

        Raises
        ------
        ScenarioError
            If the scenario is refused.
        SettingError
            If its path is relative, or a value that is to replace one of it is refused.
        """
        name, text = str(config["scenario"]), str(config.get("scenario-text", ""))
        path = find(name)
        if not path.is_absolute():
            raise SettingError(
                f"scenario {name!r} is neither one that ships nor an absolute path, "
                "and where Flower runs an app a relative one leads elsewhere; give "
                "the whole path, or use `python -m simulation run`"
            )
        scenario = read_scenario(path, text or None)
        changes = {
            field: config[key] for key, field in OVERRIDES.items() if config.get(key)
        }
        try:
            training: Training = replace(scenario.training, **changes)
        except SettingError as error:
            raise SettingError(f"run configuration: {error}") from error
        seed = int(config.get("seed", -1))
        return cls(
            replace(
                scenario, training=training, seed=scenario.seed if seed < 0 else seed
            ),
            str(config.get("output-folder", "")),
            str(config.get("listen", "")),
        )
