"""The options against timm's modules of the same shape, where timm is installed: logits, features and gradients.

timm's parameters and gradients are read by its family's table of names (cvit/families/timm_vit.py).
"""

from functools import partial

import numpy as np
import pytest
from checks import assert_close, peer

from cvit import ViT, ViTConfig
from cvit.families import from_timm, read

torch = peer("torch")
timm_models = peer("cvit.families.census.timm_models")

import timm  # noqa: E402

VisionTransformer = timm.models.vision_transformer.VisionTransformer

SHAPE = dict(image_size=(8, 12), patch_size=4, channels=2, width=24, depth=2, heads=3, hidden=36, classes=5, eps=1e-6)
SAME = dict(
    img_size=(8, 12), patch_size=4, in_chans=2, embed_dim=24, depth=2, num_heads=3, mlp_ratio=1.5, num_classes=5
)

CASES = {  # ours, timm's
    "plain": (dict(activation="gelu_erf"), {}),
    "layer scale": (dict(activation="gelu_erf", layer_scale=0.3), dict(init_values=0.3)),
    "registers": (dict(activation="gelu_erf", registers=3), dict(reg_tokens=3)),
    "registers, positions of patches": (
        dict(activation="gelu_erf", registers=2, pos_tokens="patches"),
        dict(reg_tokens=2, no_embed_class=True),
    ),
    "mean over patches": (
        dict(activation="gelu_erf", pool="mean", class_token=True),
        dict(global_pool="avg", fc_norm=False),
    ),
    "mean without class token": (
        dict(activation="gelu_erf", pool="mean"),
        dict(global_pool="avg", class_token=False, fc_norm=False),
    ),
    "tanh GELU": (dict(activation="gelu_tanh"), dict(act_layer="gelu_tanh")),
    "quick GELU": (dict(activation="quick_gelu"), dict(act_layer="quick_gelu")),
    "SiLU": (dict(activation="silu"), dict(act_layer="silu")),
    "ReLU": (dict(activation="relu"), dict(act_layer="relu")),
    "gated, packed": (
        dict(activation="silu", gated=True),
        dict(mlp_layer="GluMlp", act_layer="silu", mlp_ratio=3.0),
    ),
    "gated, split": (dict(activation="silu", gated=True), dict(mlp_layer="SwiGLU", act_layer="silu")),
}


def timm_model(options):
    """A timm model in float64 whose every parameter is drawn, also those that begin as zero or one."""
    options = dict(options)
    if "mlp_layer" in options:
        options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
        if options["mlp_layer"] is timm.layers.GluMlp:
            options["mlp_layer"] = partial(timm.layers.GluMlp, gate_last=False)
    return timm_models.draw(VisionTransformer(**{**SAME, **options}).double().eval())


@pytest.mark.parametrize("name", CASES)
def test_equal_to_timm(name):
    ours, theirs = CASES[name]
    module = timm_model(theirs)
    found = from_timm(module)
    config = found.config
    assert config == ViTConfig(**{**SHAPE, **ours, "layer_scale": config.layer_scale})  # whose first value is unknown
    model = ViT(config, found.weights.astype(np.float64))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3, 2, 8, 12)), np.array([1, 4, 0])
    logits = module(torch.from_numpy(x))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    loss.backward()
    assert_close(model.forward(x), logits.detach().numpy(), 1e-9, name="logits")
    got, grad = model.loss_and_grad(x, y)
    assert_close(got, float(loss.detach()), 1e-10, name="loss")
    gradients = {key: value.grad.numpy() for key, value in module.named_parameters()}
    expected = read(gradients, [found.family], config=config, style=found.style, dtype=np.float64).weights
    assert_close(grad, expected, 1e-9, name="gradient")
