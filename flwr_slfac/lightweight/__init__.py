"""Lightweight training on the device: less memory, less work, fewer bytes."""
