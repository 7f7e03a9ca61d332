"""Split learning for Flower that is small on the wire."""
