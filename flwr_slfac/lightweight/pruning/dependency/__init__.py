"""Which channels of a front must leave together, from a trace of its forward."""
