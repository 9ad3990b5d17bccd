"""The named sizes of Vision Transformers, and the largest that a new model may have."""

# name: (width D, depth, heads H, hidden width F)
VARIANTS = {
    "Ti": (192, 12, 3, 768),  # Touvron et al. 2021 (DeiT), arXiv:2012.12877
    "S": (384, 12, 6, 1536),  # the same
    "M": (512, 12, 8, 2048),  # big_vision's "M", timm's vit_medium
    "B": (768, 12, 12, 3072),  # Dosovitskiy et al. 2021, arXiv:2010.11929, table 1
    "L": (1024, 24, 16, 4096),  # the same
    "So400m": (1152, 27, 16, 4304),  # Alabdulmohsin et al. 2023, arXiv:2305.13035
    "H": (1280, 32, 16, 5120),  # Dosovitskiy et al. 2021
    "g": (1408, 40, 16, 6144),  # Zhai et al. 2022, arXiv:2106.04560, table 2
    "G": (1664, 48, 16, 8192),  # the same; timm's vit_gigantic
    "e": (1792, 56, 16, 15360),  # Chen et al. 2023 (PaLI), arXiv:2209.06794
}

# Of a model that is made anew, by `cvit train` or for a run: more is a slip, or a hostile file.
MOST = dict(image_size=1 << 15, patch_size=1 << 16, width=1 << 16, depth=1 << 12, heads=1 << 16, hidden=1 << 18)
