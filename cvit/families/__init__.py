"""Other libraries' models: the names of their tensors as tables, one file a family, for reading and for writing.

family.py     what a family is: `Row`, `Family`, `Given`     transform.py   theirs to ours and back
reading.py    `read` and `write`                             positions.py   positions for another image size
"""
