"""Weights from and to other homes: safetensors files, Flax."""
