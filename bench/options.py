"""What each option of the architecture costs: the time of `features` beside the plain model of the same shape, in turn.

    python bench/options.py [--model S/16] [--depth 4] [--batch 8] [--seconds 6]

Frozen models, in one process, a call each in turn; medians, and the ratio to the plain model's.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import cvit
from cvit import Rope, ViT, ViTConfig

OPTIONS = {
    "layer scale": dict(layer_scale=0.1),
    "4 registers": dict(registers=4),
    "rotary, axial": dict(rope=Rope()),
    "rotary, centred": dict(rope=Rope("centred", theta=100.0)),
    "rotary, learned": dict(rope=Rope("mixed", theta=10.0)),
    "norm before the blocks": dict(pre_norm=True),
    "norm of patches": dict(patch_norm=True),
    "RMSNorm": dict(norm="rms"),
    "norm of q and k": dict(qk_norm=True),
    "norm before the projection": dict(attn_norm=True),
    "norm in the MLP": dict(mlp_norm=True),
    "norms behind (post)": dict(block="post"),
    "parallel": dict(block="parallel"),
    "attention pooling": dict(pool="map", class_token=True),
    "norm behind the pooling": dict(fc_norm=True),
    "quick GELU": dict(activation="quick_gelu"),
    "GELU, exact": dict(activation="gelu_erf"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="S/16")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each option")
    args = parser.parse_args()
    shape = dict(depth=args.depth, classes=0)
    plain = ViT(ViTConfig.variant(args.model, **shape)).freeze()
    x = np.random.default_rng(0).standard_normal((args.batch, 3, *plain.config.image_size)).astype(np.float32)
    print(
        f"ViT-{args.model}, depth {args.depth}, batch {args.batch}, {cvit.get_num_threads()} threads, {cvit.get_isa()}"
    )
    print("| option | time, of the plain model's | multiply-adds, of the plain model's |\n|---|---|---|")
    for name, option in OPTIONS.items():
        model = ViT(ViTConfig.variant(args.model, **shape, **option)).freeze()
        times: dict[ViT, list[float]] = {plain: [], model: []}
        for one in times:
            one.features(x)
        end = time.perf_counter() + args.seconds
        while time.perf_counter() < end:
            for one, found in times.items():
                start = time.perf_counter()
                one.features(x)
                found.append(time.perf_counter() - start)
        ratio = statistics.median(times[model]) / statistics.median(times[plain])
        work = model.config.forward_flops() / plain.config.forward_flops()
        print(f"| {name} | {ratio:.3f} | {work:.3f} |", flush=True)


if __name__ == "__main__":
    main()
