"""Waterfill: a transform, one step for all coefficients, entropy coding."""
