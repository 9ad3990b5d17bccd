"""Everything that runs on several threads, in many shapes, for ThreadSanitizer to watch. See `make tsan`.

Two threads that touch the same memory without an order between them are reported whether or not it did harm this
time, so each shape needs to run only a few times; what matters is that every stage runs with more tasks than threads,
and with fewer.
"""

import itertools
import threading

import numpy as np

import cvit
from cvit import SGD, AdamW, Drop, ViT, ViTConfig, ops
from cvit.engine import update
from cvit.engine.plan import Progress

CONFIGS = [
    (9, ViTConfig(image_size=8, patch_size=2, channels=1, width=32, depth=2, heads=4, hidden=64, classes=10)),
    (
        70,
        ViTConfig(
            image_size=4,
            patch_size=2,
            channels=2,
            width=21,
            depth=1,
            heads=3,
            hidden=35,
            classes=150,
            pool="mean",
            gelu="erf",
        ),
    ),
    (1, ViTConfig(image_size=17, patch_size=1, channels=1, width=16, depth=1, heads=2, hidden=24, classes=3)),
    (3, ViTConfig(image_size=6, patch_size=3, channels=3, width=130, depth=1, heads=2, hidden=300, classes=4)),
    (2, ViTConfig.plain(image_size=8, patch_size=4, channels=1, width=24, depth=0, heads=2, classes=5)),
]


def model_passes(seed):
    rng = np.random.default_rng(seed)
    for (N, config), precision in itertools.product(CONFIGS, ("f32", "bf16")):  # bfloat16's rows lie in pairs
        x = rng.standard_normal((N, config.channels, *config.image_size)).astype(np.float32)
        y = rng.integers(config.classes, size=N)
        model = ViT(config, seed=seed, precision=precision)
        for optimizer in (SGD(model, 0.01, momentum=0.9), AdamW(model, 1e-3)):
            for _ in range(2):
                _, grad = model.loss_and_grad(x, y)
                optimizer.step(model.weights, grad, clip_norm=1.0)
        model.loss_and_grad(x, y, drop=Drop(0.3, 0.2, seed))
        targets = np.full((N, config.classes), 1 / config.classes, np.float32)
        for first in (0, config.depth, "head"):
            model.loss_and_grad(x, targets, first=first, sample_weight=np.ones(N))
        model.forward(x)
        model.attention(x)
        model.freeze().forward(x)
    large = np.ones(300_000)
    run = update.run_of(5, 200_000, decay=True)
    update.sum_of_squares(large, run)
    update.sgd(large, large.copy(), None, 0.1, 0.0, False, 0.0, run, 1.0)
    update.average(large, large.copy(), 0.1, run)


def followed_pass(seed):
    """A thread reads the blocks' gradients that are final while the others write the rest."""
    N, config = CONFIGS[0]
    x, y = np.ones((N, config.channels, *config.image_size), np.float32), np.zeros(N, np.int64)
    model, grad, progress = ViT(config, seed=seed), np.empty(ViT(config).layout.size, np.float32), Progress()
    run = threading.Thread(target=model.loss_and_grad, args=(x, y), kwargs=dict(out=grad, progress=progress))
    run.start()
    while run.is_alive():
        for piece in model.layout.pieces()[: progress()]:
            grad[piece].copy()
    run.join()


def kernels(seed):
    rng = np.random.default_rng(seed)
    for dtype in (np.float32, np.float64):
        x, w, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((300, 40), (40, 200), (300, 200)))
        ops.linear(x, w), ops.linear_backward(dy, x, w)
        _, mean, rstd = ops.layernorm(x)
        ops.layernorm_backward(x, x, mean, rstd, w[:, 0])
        ops.gelu(dy), ops.gelu_backward(dy, dy, "erf"), ops.exp(dy)
        ops.activation(dy, "silu", dy), ops.activation_backward(dy, dy, "quick_gelu", dy)
        q = rng.standard_normal((3, 7, 72, 8)).astype(dtype)
        ops.attention_backward(q, q, q, q, *ops.attention(q, q, q))
        ops.attend(q[:, :, 0], q, q), ops.attend_backward(q[:, :, 0], q[:, :, 0], q, q)
        angles = rng.standard_normal((72, 4)).astype(dtype)
        ops.rotate_frequencies(q, ops.rotate(q, angles), angles[:, :2]), ops.rotate_backward(q, angles)
        ops.drop(q[0], 3, path=0.2, rate=0.2, add=q[0])
        ops.rmsnorm_backward(x, x, ops.rmsnorm(x)[1], w[:, 0])
        labels = rng.integers(40, size=300)
        ops.cross_entropy_backward(x, labels), ops.cross_entropy_backward(x, np.abs(x))
        ops.patches_backward(ops.patches(q, 4), (7, 72, 8), 4)


for isa in cvit.available_isas():
    cvit.set_isa(isa)
    for threads in (5, 3):
        cvit.set_num_threads(threads)
        model_passes(threads)
        followed_pass(threads)
        kernels(threads)
together = [
    threading.Thread(target=target, args=(seed,)) for seed, target in enumerate((model_passes, model_passes, kernels))
]
for thread in together:
    thread.start()
for thread in together:
    thread.join()
print("watched", ", ".join(cvit.available_isas()))
