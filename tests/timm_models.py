"""Small models of timm's names for the tests, with every parameter drawn."""

import functools

import numpy as np
import torch


def declare_torchvision_operators():
    """timm imports torchvision, whose operators do not load beside a CPU build of torch: their names are enough."""
    library = torch.library.Library("torchvision", "DEF")
    names = ["nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"]
    names += [f"_{name}_backward" for name in names[2:]]
    for name in names:
        two = "Tensor boxes, Tensor scores, float threshold" if name.endswith("nms") else "Tensor input"
        library.define(f"{name}({two}) -> Tensor")
    return library


try:
    operators = declare_torchvision_operators()
except RuntimeError:  # a torchvision that loaded its own
    operators = None

import timm  # noqa: E402  needs the operators

MODULES = ("vision_transformer", "deit", "eva")


@functools.cache
def names(*modules):
    """All of timm's names of these modules."""
    return [name for module in modules or MODULES for name in timm.list_models(module=module)]


def _options(name):
    # Two blocks. Grouped queries are in middle blocks alone, and the list of their heads has one number a block.
    return dict(depth=2, **(dict(num_kv_heads=(None, None)) if "sapiens2" in name else {}))


def empty(name):
    """The model of a name with two blocks and without numbers."""
    with torch.device("meta"):
        return timm.create_model(name, **_options(name))


def heads_of(module):
    block = module.blocks[0]
    return (block if hasattr(block, "num_heads") else getattr(block, "attn", None) or block.attns[0].attn).num_heads


def draw(module, seed=0):
    """Every parameter drawn, none near 0 or 1, in numbers that float32 holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
            matrix = name.endswith("weight") and tensor.ndim > 1
            scale = fan_in**-0.5 if matrix else 0.3
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.copy_((scale * drawn + centre).float())
    return module


def small(name, **options):
    """The model of a name with its own heads, eight channels each, two blocks, 4 x 3 patches: float64, drawn."""
    module = empty(name)
    down, across = module.patch_embed.patch_size
    heads = heads_of(module)
    given = dict(embed_dim=8 * heads, img_size=(4 * down, 3 * across), num_classes=5 if module.num_classes else 0)
    return draw(timm.create_model(name, **{**_options(name), **given, **options}).double().eval())


def results(module, images):
    """Tokens and logits (features without a head) of images (N, C, H, W), float64."""
    with torch.no_grad():
        images = torch.from_numpy(np.asarray(images))
        return module.forward_features(images).numpy(), module(images).numpy()
