"""Split learning in a dozen lines: a small residual network on handwritten digits."""
