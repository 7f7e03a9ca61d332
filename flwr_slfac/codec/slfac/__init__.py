"""SL-FAC: adaptive frequency decomposition, frequency-based quantization."""
