"""What of a `Lightweight` setting does not go together, refused by name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flwr_slfac.counts import require_count
from flwr_slfac.errors import SettingError
from flwr_slfac.lightweight.device_config import FULL_BITS

if TYPE_CHECKING:
    from flwr_slfac.lightweight.setting import Lightweight


def require_gradual(setting: "Lightweight") -> None:
    """Refuse a schedule of no rounds, or on top of one by the user."""
    if setting.prune_rounds == 0 and not isinstance(setting.prune_rounds, bool):
        return
    require_count("prune_rounds", setting.prune_rounds)
    if isinstance(setting.prune, Sequence):
        raise SettingError(
            f"prune={setting.prune!r} gives a share for each round, and "
            f"prune_rounds={setting.prune_rounds} would, too; give one number, or "
            "leave prune_rounds out"
        )


def require_renewable(setting: "Lightweight") -> None:
    """Refuse masks to be renewed where there are none, or no means to do it at."""
    if setting.renew_every is None:
        return
    require_count("renew_every", setting.renew_every)
    if not setting.period_steps or not setting.prunes:
        raise SettingError(
            f"renew_every={setting.renew_every} renews masks at means within a round; "
            "set prune= above 0 and aggregate_every= with period='step', or leave "
            "renew_every out"
        )


def require_exact_means(setting: "Lightweight") -> None:
    """Refuse control variates without means to learn from, or from rounded ones."""
    if not setting.control_variates:
        return
    if not setting.period_steps:
        raise SettingError(
            "control_variates=True follows from means of fronts within a round; set "
            "aggregate_every= with period='step', or leave control_variates out"
        )
    if setting.device_config.update_bits != FULL_BITS:
        raise SettingError(
            f"control_variates=True sums what devices strayed from means, and with "
            f"updates in {setting.device_config.update_bits} bits what was lost to "
            "rounding, too; set update_bits=32, or leave control_variates out"
        )
