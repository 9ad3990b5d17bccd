"""Pictures in: files, Pillow's images and uint8 arrays become the float32 arrays (N, C, H, W) that a model takes.

open.py       any file or mode as an RGB or grey picture       published.py  timm's and transformers' settings, read
pixels.py     resizing, cropping, scaling of one picture       listing.py    the pictures of a folder
reader.py     what stands for pictures, as a list            preprocessing.py  `Preprocessing`: settings, and the call

Decoding and resizing are Pillow's. It is imported when the first picture comes, so that everything else, the settings
included, needs NumPy alone.
"""
