"""Lightweight split training: every reduction is a line of the run configuration."""
