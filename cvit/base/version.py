"""The version of cvit, below everything: files that are written name it, and `cvit.__version__` is the same."""

VERSION = "0.1.0"
