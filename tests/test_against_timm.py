"""The options against timm's modules of the same shape, where timm is installed: logits, features and gradients.

timm's parameters are read through the column that says where a tensor stands in timm: the tests check the columns, too.
"""

import numpy as np
import pytest
from checks import assert_close, declare_torchvision_operators

from cvit import Layout, ViT, ViTConfig

torch = pytest.importorskip("torch")
operators = declare_torchvision_operators()
timm = pytest.importorskip("timm", exc_type=ImportError)
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
            from functools import partial

            options["mlp_layer"] = partial(timm.layers.GluMlp, gate_last=False)
    model = VisionTransformer(**{**SAME, **options}).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            drawn = 0.3 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model


def read(layout, tensors):
    """The flat weights (or gradient) that timm's tensors by name are."""
    flat = np.empty(layout.size)
    views = layout.views(flat)
    used = set()
    for name, entry in layout.entries.items():
        row = entry.row
        there, place = next((n, p) for n, p in zip(row.timm_names(), row.timm) if n in tensors)
        views[name][...] = place.here(tensors[there], entry.shape)
        used.add(there)
    assert used == tensors.keys(), f"not read: {sorted(tensors.keys() - used)}"
    return flat


@pytest.mark.parametrize("name", CASES)
def test_equal_to_timm(name):
    ours, theirs = CASES[name]
    reference, config = timm_model(theirs), ViTConfig(**{**SHAPE, **ours})
    layout = Layout.of(config)
    model = ViT(config, read(layout, {key: value.detach().numpy() for key, value in reference.named_parameters()}))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3, 2, 8, 12)), np.array([1, 4, 0])
    logits = reference(torch.from_numpy(x))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    loss.backward()
    assert_close(model.forward(x), logits.detach().numpy(), 1e-9, name="logits")
    got, grad = model.loss_and_grad(x, y)
    assert_close(got, float(loss), 1e-10, name="loss")
    expected = read(layout, {key: value.grad.numpy() for key, value in reference.named_parameters()})
    assert_close(grad, expected, 1e-9, name="gradient")
