"""Train a small ViT on arrays, here scikit-learn's digits: python examples/train_on_arrays.py [EPOCHS]"""

import sys

from cvit import AdamW, ViT, ViTConfig, evaluate, fit
from cvit.data import digits, random_affine


def main(epochs=20):
    train, test = digits()  # images (N, 1, 8, 8) float32, labels (N,): arrays of your own do as well
    config = ViTConfig(image_size=8, patch_size=2, channels=1, width=64, depth=4, heads=4, hidden=128, classes=10)
    model = ViT(config, seed=0, class_names=[str(digit) for digit in range(10)])
    history = fit(
        model, train, test, epochs=epochs, batch_size=32, optimizer=AdamW(model, lr=1e-3, weight_decay=0.05),
        label_smoothing=0.1, clip_norm=1.0, augment=random_affine, on_epoch=print,
    )  # fmt: skip
    print(f"best epoch: {history.best.epoch}, accuracy {evaluate(model, *test).accuracy:.1%}")
    model.save("digits.safetensors")  # cvit.load, `cvit predict` and `cvit plot` read it


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
