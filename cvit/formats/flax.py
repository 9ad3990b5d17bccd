"""Weights to and from Flax: the flat weight tensor as the nested dicts that a Flax ViT's parameters are.

The two Flax modules, NNX and Linen, name their parts alike and keep only the blocks differently:

    patch_embed.{kernel (P, P, C, D), bias}   pos_embed (T, D)   cls_token (D)   dist_token (D)   reg_token (R, D)
    blocks.<i> in NNX, block_<i> in Linen:
        ln1.{scale, bias}   attn.{q, k, v, o}.{kernel, bias}      ls1.gamma
        ln2.{scale, bias}   {fc1_gate, fc1, fc2}.{kernel, bias}   ls2.gamma
    ln_f.{scale, bias}   head.{kernel, bias}

Kernels are (in, out) like cvit's matrices, except for the patch embedding, a convolution whose kernel has the channels
after the pixels.
Linen holds its parameters below one more key, "params".
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..base.arrays import as_array
from ..base.errors import check, listed, short
from ..model.config import ViTConfig
from ..model.layout import Layout

APIS = ("nnx", "linen")


def to_flax(weights: np.ndarray, config: ViTConfig, api: str = "nnx") -> dict:
    """Flat weights as the nested dict of arrays that a Flax module's parameters are; the arrays are copies.

    Parameters
    ----------
    weights : array (size,)
        Flat weights in the layout of `config`.
    config : ViTConfig
    api : "nnx" or "linen"
        "nnx" gives what `nnx.to_pure_dict(nnx.state(model))` does, with integer keys below "blocks"; "linen" what
        `model.init` does, `{"params": {...}}`.
    """
    check(api in APIS, f"api must be one of {APIS}, got {api!r}")
    tree: dict = {}
    layout = Layout.of(config)
    views = layout.views(as_array("weights", weights))
    for name, entry in layout.entries.items():
        *scopes, leaf = entry.row.flax_path(api)
        branch = tree
        for scope in scopes:
            branch = branch.setdefault(scope, {})
        branch[leaf] = np.array(entry.row.flax.there(views[name]), order="C")
    return tree if api == "nnx" else {"params": tree}


def from_flax(params: Mapping, config: ViTConfig | None = None) -> np.ndarray:
    """The flat weights that a Flax module's parameters are.

    Parameters
    ----------
    params : nested mapping of arrays
        An NNX state (`nnx.state(model)`, or that as a pure dict) or Linen's parameters, with or without the outer
        "params". Which of the two it is shows in the names of the blocks.
    config : ViTConfig, optional
        What the parameters must fit. Without it the layout is read off their names and shapes, which tell all of it.

    Returns
    -------
    array (size,), float64 where a parameter is, else float32

    Raises
    ------
    ValueError
        A parameter is missing, unknown or misshapen.
    """
    if isinstance(params, Mapping) and set(params) == {"params"}:
        params = params["params"]
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a nested mapping of arrays, got {type(params).__name__}")
    arrays = dict(_leaves(params))
    api = "linen" if any(path[0].startswith("block_") for path in arrays) else "nnx"
    if config is None:
        config = _config_of(arrays)
    layout = Layout.of(config)

    rows = {name: entry.row for name, entry in layout.entries.items()}
    paths = {name: tuple(map(str, row.flax_path(api))) for name, row in rows.items()}
    missing, unknown = set(paths.values()) - arrays.keys(), arrays.keys() - set(paths.values())
    check(not missing, f"params lacks {_dotted(missing)}")
    check(not unknown, f"params has what this configuration does not know: {_dotted(unknown)}")
    tensors = {}
    for name, row in rows.items():
        array, shape = arrays[paths[name]], row.flax.shape_there(row.shape)
        check(array.shape == shape, f"params: {'.'.join(paths[name])} must have shape {shape}, got {array.shape}")
        tensors[name] = row.flax.here(array, row.shape)
    wide = any(tensor.dtype == np.float64 for tensor in tensors.values())
    return layout.pack(tensors, np.float64 if wide else np.float32)


def _leaves(tree, path=()):
    """Yield (path, array) for every array of a nested mapping, the keys as strings."""
    for key, value in tree.items():
        here = (*path, str(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, here)
        else:
            if not hasattr(value, "__array__"):
                value = getattr(value, "value", value)  # a box around an array: flax.linen.Partitioned and its like
            name = f"params: {short('.'.join(here))}"
            array = as_array(name, value)
            check(array.dtype.kind in "fiuV", f"{name} must hold numbers, got {array.dtype}")
            yield here, array


def _config_of(arrays):
    """A configuration with the layout of these arrays. What a layout does not show is arbitrary:
    heads, GELU, eps, and which of the tokens have positions."""
    ranks = {"patch_embed.kernel": 4, "pos_embed": 2, "head.kernel": 2}
    if ("reg_token",) in arrays:
        ranks["reg_token"] = 2
    shapes = {}
    for name, rank in ranks.items():
        array = arrays.get(tuple(name.split(".")))
        check(array is not None, f"params lacks {name}")
        check(array.ndim == rank, f"params: {name} must have {rank} dimensions, got shape {array.shape}")
        shapes[name] = array.shape
    patch, _, channels, width = shapes["patch_embed.kernel"]
    parts = {path[-2:] for path in arrays}
    hidden = [array.shape[-1] for path, array in arrays.items() if path[-2:] == ("fc1", "kernel") and array.ndim]
    blocks = {path[:2] if path[0] == "blocks" else path[:1] for path in arrays if path[0].startswith("block")}
    return ViTConfig(
        image_size=(patch, patch * shapes["pos_embed"][0]),
        patch_size=patch,
        channels=channels,
        width=width,
        depth=len(blocks),
        heads=1,
        hidden=hidden[0] if hidden else 0,
        classes=shapes["head.kernel"][1],
        pool="mean",
        class_token=("cls_token",) in arrays,
        dist_token=("dist_token",) in arrays,
        registers=shapes.get("reg_token", (0,))[0],
        pos_tokens="patches",
        bias=("patch_embed", "bias") in parts,
        norm_affine=any(part[-1] == "scale" for part in parts),
        final_norm=("ln_f", "scale") in parts,
        gated=("fc1_gate", "kernel") in parts,
        layer_scale=(1.0 if ("ls1", "gamma") in parts else None, 1.0 if ("ls2", "gamma") in parts else None),
    )


def _dotted(paths):
    return listed(".".join(path) for path in paths)
