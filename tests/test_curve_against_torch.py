"""300 steps of AdamW from the same weights on the same batches: the loss curve is that of torch and timm."""

import numpy as np
import pytest
from checks import peer

from cvit import AdamW, ViT, ViTConfig
from cvit.data import ArrayFeed, digits

torch = peer("torch")
timm = peer("timm")
pytest.importorskip("sklearn")

STEPS, LR = 300, 1e-3


def batches(images, labels):
    """The batches of so many steps, epoch by epoch."""
    feed, step, epoch = ArrayFeed(images, labels, 32, seed=0), 0, 0
    while True:
        for batch in feed.epoch(epoch):
            if step == STEPS:
                return
            yield batch.images, batch.targets
            step += 1
        epoch += 1


def test_the_curve_of_300_steps(tmp_path):
    train, _ = digits()
    config = ViTConfig(
        image_size=8, patch_size=2, channels=1, width=32, depth=3, heads=4, hidden=64, classes=10, activation="gelu_erf"
    )
    model = ViT(config, seed=0)
    model.save(tmp_path / "start", names="timm")
    module = timm.create_model(f"local-dir:{tmp_path / 'start'}", pretrained=True).train()
    ours, theirs = AdamW(model, LR, weight_decay=0), torch.optim.AdamW(module.parameters(), LR, weight_decay=0)
    curves = []
    for x, y in batches(*train):
        loss, grad = model.loss_and_grad(x, y)
        ours.step(model.weights, grad)
        theirs.zero_grad()
        torch_loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y))
        torch_loss.backward()
        theirs.step()
        curves.append((loss, torch_loss.item()))
    ours, theirs = np.array(curves).T
    assert len(ours) == STEPS and ours[-20:].mean() < 0.5 * ours[0]
    assert np.abs(ours - theirs).max() < 1e-3
