"""How long a split training would take on many unlike devices, and what it would cost.

::

    Profile (what a device is) ──┐
    Channel (how fast it sends) ─┼─► Clock.advance(record of a round) ─► Timeline
    RoundRecord (what happened) ─┘                              spans, waits, joules

`scenario` reads all settings from one TOML file, `plan` answers which cut suits which
device without training, `measure` makes a profile of the machine it runs on.
"""
