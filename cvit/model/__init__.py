"""What a ViT is (config, layout, first weights) and what it does (ViT, and the plain functions)."""

from .config import ViTConfig
from .initialize import init_weights
from .layout import Layout
from .vit import Plan, ViT

__all__ = ["Layout", "Plan", "ViT", "ViTConfig", "init_weights"]
