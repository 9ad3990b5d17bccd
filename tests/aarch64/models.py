"""What small models compute, on this machine: run by run.py on AArch64, emulated, and on the machine at hand.

    python tests/aarch64/models.py results.npz [bf16 f32 f64]

For every option of tests/option_cases.py and a few longer inputs, on every table, in bf16, float32 and float64: logits,
a loss with its gradient, and the weights after two steps with dropout and stochastic depth: of AdamW in bf16, of SGD in
the others (where a gradient is zero but for its roundings, AdamW's step is as large as any, and its direction theirs).
Arrays are named "case | precision | what | table".
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from option_cases import OPTIONS, TRAINED, problem

import cvit
from cvit import SGD, AdamW, Drop, ViT

WIDE = dict(image_size=16, channels=3, width=48, hidden=80, classes=11)
CASES = {name: OPTIONS[name] for name in TRAINED}
CASES |= {
    "65 tokens": WIDE,
    "97 tokens": WIDE | dict(image_size=(16, 24), activation="quick_gelu"),
    "401 tokens, heads of 72": WIDE | dict(image_size=40, width=144, heads=2, activation="gelu_erf"),
}
PRECISIONS = {"bf16": dict(precision="bf16"), "f32": {}, "f64": dict(dtype=np.float64)}


def results(options, chosen):
    config, weights, x, y = problem(options, dtype=chosen.get("dtype", np.float32))
    model = ViT(config, weights, **chosen)
    found = {"logits": model.forward(x)}
    optimizer = AdamW(model, lr=1e-3) if "precision" in chosen else SGD(model, lr=1e-2, momentum=0.9)
    for step in range(2):
        loss, grad = model.loss_and_grad(x, y, label_smoothing=0.1, drop=Drop(rate=0.1, path=0.1, seed=step))
        found |= {f"loss {step}": np.array(loss), f"gradient {step}": grad.copy()}
        optimizer.step(model.weights, grad, clip_norm=1.0)
    return found | {"weights": model.weights}


def main(path, *precisions):
    found = {}
    for isa in cvit.available_isas():
        cvit.set_isa(isa)
        for case, options in CASES.items():
            for precision in precisions or PRECISIONS:
                for name, array in results(options, PRECISIONS[precision]).items():
                    found[f"{case} | {precision} | {name} | {isa}"] = array
    np.savez(path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
