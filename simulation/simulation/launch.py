"""One run of the app by Flower's command, a scenario's file read on this side."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flwr_slfac import SettingError
from flwr_slfac.errors import TrainingError
from simulation.cut_choice import choose_cuts
from simulation.data import require_shape
from simulation.run_settings import OVERRIDES, RunSettings, find
from simulation.typed_texts import typed
from simulation.virtual import require_lockstep
from simulation.work import require_memory
from simulation.world import make_cuts_of_model, make_profiles

APP = Path(__file__).parents[1]
Config = dict[str, str | int | float]


def read_settings(text: str) -> Config:
    """Return ``codec-up=identity num-rounds=4`` as keys of the run configuration.

    Raises
    ------
    SettingError
        If a part is no ``KEY=VALUE``, or a key is not known.

    Examples
    --------
    >>> read_settings("codec-up='topk(fraction=0.1)' num-rounds=4")
    {'codec-up': 'topk(fraction=0.1)', 'num-rounds': 4}
    """
    known = (*OVERRIDES, "seed")
    found: Config = {}
    for part in shlex.split(text):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise SettingError(
                f"{part!r} is no KEY=VALUE with one of {', '.join(known)}"
            )
        found[key] = typed(value)
    return found


def config_of(scenario: str, settings: Mapping[str, str | int | float]) -> Config:
    """Return the run configuration of a scenario, refused here if it would be there.

    Parameters
    ----------
    scenario : str
        Name of one that ships, or a path.
    settings : mapping
        What is to be otherwise; see `read_settings`.

    Raises
    ------
    ScenarioError, SettingError
        As the app.
    """
    path = find(scenario).resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read: {error}") from error
    config: Config = {"scenario": str(path), "scenario-text": text, **settings}
    run = RunSettings.of(config).scenario
    require_lockstep(run)
    require_shape(run)
    profiles = make_profiles(run)
    at = choose_cuts(run, profiles)
    require_memory(run, profiles, make_cuts_of_model(run), at)
    return config


def launch(config: Config, output: Path, num_cpus: int) -> Path:
    """Run the app until it ends; return its folder.

    Parameters
    ----------
    config : dict
        As `config_of` returns it.
    output : Path
        Where its files go.
    num_cpus : int
        Ray actors, one a core; a cluster that ``RAY_ADDRESS`` names has its own.

    Raises
    ------
    TrainingError
        If the run fails; its log says why.
    """
    count = len(make_profiles(RunSettings.of(config).scenario))
    nodes = f"num-supernodes={count} client-resources-num-cpus=1"
    values = {**config, "output-folder": str(output.resolve())}
    with tempfile.TemporaryDirectory() as folder:
        # JSON's texts and numbers are TOML's.
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path = Path(folder) / "run.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "flwr_slfac.run", str(APP)]
        # Ray refuses to be told the cores of a cluster that is there.
        own = "" if os.environ.get("RAY_ADDRESS") else f" init-args-num-cpus={num_cpus}"
        command += ["--federation-config", nodes + own]
        done = subprocess.run([*command, "--run-config", str(path)], check=False)
    if done.returncode:
        raise TrainingError("the run failed; its log above says why")
    return output


def default_cpus() -> int:
    """Return the cores of this machine."""
    return os.cpu_count() or 1
