"""Attacks on everything that cvit reads: `python -m fuzz`. See README.md.

running.py    one case under limits, and many of them in a process of their own
changes.py    what is done to numbers, texts, JSON and bytes
guided.py     the same cases drawn by atheris, which looks for those that reach new lines
targets/      a file for each kind of input: how a case is made, how it is read, which errors are documented
native/       fuzzers of the C kernels
"""
