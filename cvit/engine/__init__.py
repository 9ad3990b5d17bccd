"""Threads, memory and stages: a pass over a model in compiled code. Knows no configuration and no file."""
