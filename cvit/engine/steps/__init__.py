"""The steps of a pass, one file for each part of a model: forward and backward facing each other, and what both
need."""
