"""Quantized gradients and updates."""
