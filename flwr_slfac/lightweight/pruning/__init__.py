"""Which channels or weights of a front a device does without, and what follows."""
