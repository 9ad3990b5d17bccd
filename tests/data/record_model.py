"""Record a small model in the present config format n, tests/data/model-format<n>.safetensors, for later versions.

    python tests/data/record_model.py

Weights and image come from `RandomState`, whose numbers are the same in every NumPy; the logits stand in the metadata.
A recorded file is never recorded again: it shows what that version wrote.
"""

import json
import pathlib

import numpy as np

from cvit import Rope, ViT, ViTConfig, save

# Format 1: what it could say, none of it by default.
FORMAT_1 = dict(
    image_size=(6, 9), patch_size=3, channels=2, width=8, depth=2, heads=2, hidden=10, classes=3, pool="mean",
    norm_affine=True, final_norm=False, gelu="erf", eps=1e-4,
)  # fmt: skip
# Format 2: what it added, none of it by default.
FORMAT_2 = dict(
    image_size=(6, 9), patch_size=3, channels=2, width=8, depth=2, heads=2, hidden=10, classes=3, pool="mean_all",
    activation="silu", gated=True, layer_scale=(0.3, None), class_token=True, dist_token=True, registers=2,
    pos_tokens="patches", eps=1e-4,
)  # fmt: skip
# Format 3: what it added, none of it by default.
FORMAT_3 = dict(
    image_size=(6, 9), patch_size=(2, 3), channels=2, width=8, depth=2, heads=2, hidden=10, classes=3, pool="map",
    patch_bias=False, patch_norm=True, pre_norm=True, norm="rms", norm_eps={"norm1": 1e-3}, block="parallel",
    rope=Rope("centred", 100.0, 0.5, (3, 4), True), qkv_bias=(True, False, True), qk_norm=True, attn_norm=True,
    proj_bias=False, mlp_bias=False, mlp_norm=True, fc_norm=True, pool_heads=4, pool_hidden=-1, pool_prefix=False,
    pool_query=False, pool_bias=False, pre_logits=7, pre_logits_activation="relu", head_bias=False, eps=1e-4,
)  # fmt: skip


def weights(size):
    return np.random.RandomState(1).normal(size=size).astype(np.float32)


def images(config):
    return np.random.RandomState(2).normal(size=(2, config.channels, *config.image_size)).astype(np.float32)


if __name__ == "__main__":
    config = ViTConfig(**FORMAT_3)
    model = ViT(config)
    model.weights[:] = weights(model.layout.size)
    number = json.loads(config.to_json()).get("format", 1)
    path = pathlib.Path(__file__).parent / f"model-format{number}.safetensors"
    save(path, model, metadata={"logits": json.dumps(model.forward(images(config)).tolist())})
