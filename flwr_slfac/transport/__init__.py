"""What carries the steps between server and devices. Knows split, not codecs."""
