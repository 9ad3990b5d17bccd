"""The functions that cvit grew out of: the plain Vision Transformer as pure functions of arrays.

Plain means: class token, pre-norm blocks, layer norm without scale and shift (eps 1e-5), tanh GELU, hidden width =
width, no biases, no final norm. It is one configuration of the general engine, `ViTConfig.plain`; for more than a few
calls, keep a `ViT`.

float32 or float64 in gives the same out (mixed arguments: float64). Arrays may be non-contiguous, read-only or
memory-mapped, or come from anything with `__array__` or DLPack, such as torch and JAX on the CPU. Nothing is modified.
"""

from __future__ import annotations

import math

import numpy as np

from ..base.arrays import as_array, as_float, as_labels, common_dtype
from ..base.errors import check
from ..base.numbers import as_int, representable
from ..engine import update
from ..engine.plan import Plan as Engine
from .config import ViTConfig
from .layout import Layout
from .program import program_of
from .vit import ViT
from .vit_forward import vit_forward

__all__ = [
    "pack_weights",
    "patch_embed_with_cls",
    "unpack_weights",
    "vit_block",
    "vit_classify",
    "vit_forward",
    "vit_train_step",
]  # fmt: skip

PARTS = ("w_q", "w_k", "w_v", "w_o", "w_mlp1", "w_mlp2")  # of blocks_weights[i], in order


def _embedding(x, w_proj, cls_token, pos_embed, dtype):
    """The checked arrays of the embedding, and the patch size that follows from their shapes."""
    x = as_float("x", x, ("N", "C", "H", "W"), dtype)
    check(x.size > 0, f"x must not be empty, got shape {x.shape}")
    w_proj = as_float("w_proj", w_proj, ("C·P·P", "d"), dtype)
    features, D = w_proj.shape
    C, height, width = x.shape[1:]
    P = math.isqrt(features // C)
    check(
        P > 0 and features == C * P * P, f"w_proj must have C·P·P rows for {C} channels and a whole P, got {features}"
    )
    check(D > 0, f"w_proj must have at least one column, got shape {w_proj.shape}")
    check(
        height % P == 0 and width % P == 0,
        f"the patch size {P} (from w_proj's {features} rows) must divide the image size {height}x{width}",
    )
    tokens = (height // P) * (width // P) + 1
    return (
        x,
        w_proj,
        as_float("cls_token", cls_token, (D,), dtype),
        as_float("pos_embed", pos_embed, (tokens, D), dtype),
        P,
    )


def _heads(D: int, num_heads) -> int:
    heads = as_int("num_heads", num_heads)
    check(D % heads == 0, f"num_heads must divide the width {D}, got {heads}")
    return heads


def _model(x, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads) -> tuple[np.ndarray, ViT]:
    """The checked images, and the plain model of these weights."""
    dtype = common_dtype(
        x=x, w_proj=w_proj, cls_token=cls_token, pos_embed=pos_embed, blocks_weights=blocks_weights, w_head=w_head
    )
    x, w_proj, cls_token, pos_embed, P = _embedding(x, w_proj, cls_token, pos_embed, dtype)
    D = len(cls_token)
    blocks_weights = as_float("blocks_weights", blocks_weights, ("L", 6, D, D), dtype)
    w_head = as_float("w_head", w_head, (D, "classes"), dtype)
    check(w_head.shape[1] > 0, f"w_head must have at least one column, got shape {w_head.shape}")
    config = ViTConfig.plain(
        image_size=x.shape[2:], patch_size=P, channels=x.shape[1], width=D, depth=len(blocks_weights),
        heads=_heads(D, num_heads), classes=w_head.shape[1],
    )  # fmt: skip
    return x, ViT(config, pack_weights(w_proj, cls_token, pos_embed, blocks_weights, w_head))


def patch_embed_with_cls(x, w_proj, cls_token, pos_embed) -> np.ndarray:
    """Tokens of images: patches times w_proj, the class token before them, positions added.

    Equation 1 of Dosovitskiy et al. 2021 (arXiv:2010.11929).

    Parameters
    ----------
    x : array (N, C, H, W)
    w_proj : array (C·P·P, d); the patch size P follows from it and must divide H and W
    cls_token : array (d,)
    pos_embed : array (T, d), T = (H / P) (W / P) + 1

    Returns
    -------
    array (N, T, d). Patches are cut row by row over the grid, each flattened as (C, P, P).
    """
    dtype = common_dtype(x=x, w_proj=w_proj, cls_token=cls_token, pos_embed=pos_embed)
    x, w_proj, cls_token, pos_embed, P = _embedding(x, w_proj, cls_token, pos_embed, dtype)
    D = len(cls_token)
    config = ViTConfig.plain(
        image_size=x.shape[2:], patch_size=P, channels=x.shape[1], width=D, depth=0, heads=1, classes=1
    )
    flat = pack_weights(w_proj, cls_token, pos_embed, np.empty((0, 6, D, D), dtype), np.zeros((D, 1), dtype))
    engine = Engine(program_of(config), len(x), dtype, "infer")
    return engine.embed(flat, x).copy()


def vit_block(x, w_q, w_k, w_v, w_o, w_mlp1, w_mlp2, num_heads) -> np.ndarray:
    """One plain pre-norm block: h = x + attention(LN(x)); h + gelu(LN(h) @ w_mlp1) @ w_mlp2.

    Parameters
    ----------
    x : array (N, T, d)
    w_q, w_k, w_v, w_o, w_mlp1, w_mlp2 : array (d, d)
    num_heads : int, must divide d; scores are scaled by 1 / sqrt(d / num_heads)

    Returns
    -------
    array (N, T, d)
    """
    matrices = dict(zip(PARTS, (w_q, w_k, w_v, w_o, w_mlp1, w_mlp2)))
    dtype = common_dtype(x=x, **matrices)
    x = as_float("x", x, ("N", "T", "d"), dtype)
    check(x.size > 0, f"x must not be empty, got shape {x.shape}")
    N, T, D = x.shape
    matrices = {name: as_float(name, matrix, (D, D), dtype) for name, matrix in matrices.items()}
    # T tokens and no class token: "images" of T patches of one pixel, whose embedding is not run
    config = ViTConfig(
        image_size=(T, 1), patch_size=1, channels=1, width=D, depth=1, heads=_heads(D, num_heads), hidden=D, classes=1,
        pool="mean", bias=False, norm_affine=False, final_norm=False, eps=1e-5,
    )  # fmt: skip
    layout = Layout.of(config)
    flat = np.zeros(layout.size, dtype)
    start = layout.offset("blocks.0.attn.q.weight")
    flat[start : start + 6 * D * D] = np.concatenate([matrix.ravel() for matrix in matrices.values()])
    return Engine(program_of(config), N, dtype, "infer").blocks(flat, x).copy()


def vit_classify(x, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads) -> np.ndarray:
    """Logits of images under the plain ViT: embedding, blocks, then the class token times w_head.

    Parameters
    ----------
    x : array (N, C, H, W)
    w_proj, cls_token, pos_embed : as in `patch_embed_with_cls`
    blocks_weights : array (L, 6, d, d), each block's w_q, w_k, w_v, w_o, w_mlp1, w_mlp2
    w_head : array (d, classes)
    num_heads : int, must divide d

    Returns
    -------
    array (N, classes)
    """
    x, model = _model(x, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads)
    return model.forward(x)


def vit_train_step(x, y, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads, lr) -> np.ndarray:
    """One step of SGD on the plain ViT's mean softmax cross-entropy: w - lr dw for every weight.

    Parameters
    ----------
    x, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads : as in `vit_classify`
    y : array (N,) of any integer dtype, labels in [0, classes)
    lr : float, finite and not negative

    Returns
    -------
    array (size,), all updated weights, flat, in the order w_proj, cls_token, pos_embed, blocks_weights, w_head:
    `unpack_weights` gives them back their shapes. The arguments are not modified.
    """
    x, model = _model(x, w_proj, cls_token, pos_embed, blocks_weights, w_head, num_heads)
    lr = representable("lr", lr, model.dtype)
    as_labels("y", y, len(x), model.config.classes)
    _, grad = model.loss_and_grad(x, y)
    update.sgd(model.weights, grad, None, lr, 0.0, False, 0.0, update.run_of(0, grad.size), 1.0)
    return model.weights


def pack_weights(w_proj, cls_token, pos_embed, blocks_weights, w_head) -> np.ndarray:
    """The plain model's weights as one new flat tensor (size,), in this order. Shapes as in `vit_classify`."""
    parts = dict(w_proj=w_proj, cls_token=cls_token, pos_embed=pos_embed, blocks_weights=blocks_weights, w_head=w_head)
    dtype = common_dtype(**parts)
    w_proj = as_float("w_proj", w_proj, ("C·P·P", "d"), dtype)
    D = w_proj.shape[1]
    shapes = dict(cls_token=(D,), pos_embed=("T", D), blocks_weights=("L", 6, D, D), w_head=(D, "classes"))
    rest = [as_float(name, parts[name], shape, dtype) for name, shape in shapes.items()]
    return np.concatenate([array.ravel() for array in (w_proj, *rest)])


def unpack_weights(flat, features, tokens, d_model, num_layers, num_classes) -> dict[str, np.ndarray]:
    """The plain model's weights by name, as zero-copy views of `flat`: what `pack_weights` was given.

    Parameters
    ----------
    flat : NumPy array (size,)
    features, tokens, d_model, num_layers, num_classes : int
        C·P·P, T = patches + 1, d, L and the number of classes.

    Returns
    -------
    dict with w_proj (C·P·P, d), cls_token (d,), pos_embed (T, d), blocks_weights (L, 6, d, d), w_head (d, classes)
    """
    flat = as_array("flat", flat)
    F, T, D = as_int("features", features), as_int("tokens", tokens), as_int("d_model", d_model)
    L, classes = as_int("num_layers", num_layers, minimum=0), as_int("num_classes", num_classes)
    shapes = dict(w_proj=(F, D), cls_token=(D,), pos_embed=(T, D), blocks_weights=(L, 6, D, D), w_head=(D, classes))
    sizes = [math.prod(shape) for shape in shapes.values()]
    check(flat.shape == (sum(sizes),), f"flat must have shape ({sum(sizes)},) for these sizes, got {flat.shape}")
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces)}
