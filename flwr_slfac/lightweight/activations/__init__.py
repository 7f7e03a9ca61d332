"""Activations held in 8 bits between forward and backward."""
