"""Everything that runs on several threads, in many shapes, for ThreadSanitizer to watch. See `make tsan`.

Two threads that touch the same memory without an order between them are reported whether or not it did harm this
time, so each shape needs to run only a few times; what matters is that every stage runs with more tasks than threads,
and with fewer. What NumPy adds up is not watched, what it copies is.
"""

import itertools
import threading

import numpy as np
from option_cases import OPTIONS, TRAINED, problem
from reductions import World

import cvit
from cvit import SGD, AdamW, Drop, ViT, ViTConfig, ops
from cvit.engine import plan, team, update
from cvit.engine.plan import Progress
from cvit.parallel import reduction
from cvit.parallel.reduction import Reduction
from cvit.parallel.shares import part_slices
from cvit.train import EMA

plan.THREAD_FLOPS = 1e-3  # the models are small; share their passes out all the same
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


def precisions():
    """Those of the selected instruction set, float64 left out: bfloat16's rows lie in pairs."""
    return [name for name in ("f32", "bf16", "bf16-fast") if team.has_precision(name)]


def batch_of(N, config, rng):
    images = rng.standard_normal((N, config.channels, *config.image_size)).astype(np.float32)
    return images, rng.integers(config.classes, size=N)


def model_passes(seed):
    rng = np.random.default_rng(seed)
    for (N, config), precision in itertools.product(CONFIGS, precisions()):
        x, y = batch_of(N, config, rng)
        model = ViT(config, seed=seed, precision=precision)
        average = EMA(model, 0.9)
        for optimizer in (SGD(model, 0.01, momentum=0.9), AdamW(model, 1e-3, trained=["*weight"]), AdamW(model, 1e-3)):
            for _ in range(2):
                _, grad = model.loss_and_grad(x, y)
                optimizer.step(model.weights, grad, clip_norm=1.0)
                average.update(model.weights)
        targets = rng.dirichlet(np.ones(config.classes), N).astype(np.float32)  # as mixed pictures have them
        model.loss_and_grad(x, targets, label_smoothing=0.1, drop=Drop(0.3, 0.2, seed))
        for first in (0, config.depth, "head"):
            front = model.front(x, first)
            model.loss_and_grad(front, targets, first=first, sample_weight=np.ones(N), drop=Drop(0.3, 0.2, seed))
        less = ViT(config, model.weights, precision=precision, checkpoint="block")
        less.loss_and_grad(x, y, drop=Drop(0.3, 0.2, seed), out=grad, accumulate=True)
        model.forward(x), model.tokens(x, range(config.depth), norm=True)
        model.attention(x)
        model.freeze().forward(x)
    large = np.ones(300_000)
    run = update.run_of(5, 200_000, decay=True)
    update.sum_of_squares(large, run)
    update.sgd(large, large.copy(), None, 0.1, 0.0, False, 0.0, run, 1.0)
    update.average(large, large.copy(), 0.1, run)


def option_passes(seed):
    """Every option of a model, with its stages of its own; in one precision, another with the next seed."""
    for number, name in enumerate(TRAINED):
        config, weights, x, y = problem(OPTIONS[name], N=3 + number % 4, dtype=np.float32)
        names = precisions()
        model = ViT(config, weights, precision=names[(number + seed) % len(names)])
        assert model.plan(len(x)).threads > 1
        model.loss_and_grad(x, y, drop=Drop(0.3, 0.2, seed))
        model.forward(x)


def followed_pass(seed):
    """A thread reads the blocks' gradients that are final while the others write the rest."""
    N, config = CONFIGS[0]
    x, y = np.ones((N, config.channels, *config.image_size), np.float32), np.zeros(N, np.int64)
    for precision, first in itertools.product(precisions(), (None, 0, 1)):
        model, progress = ViT(config, seed=seed, precision=precision), Progress()
        grad, options = np.empty(model.layout.size, np.float32), dict(first=first, drop=Drop(0.3, 0.2, seed))
        run = threading.Thread(
            target=model.loss_and_grad, args=(x, y), kwargs=dict(out=grad, progress=progress, **options)
        )
        run.start()
        while run.is_alive():
            for piece in model.layout.pieces(first)[: progress()]:
                grad[piece].copy()
        run.join()


def ranks_that_train(seed):
    """Two ranks, which are threads here: of each a thread sends what its backward has finished, and takes the sums."""
    N, config = CONFIGS[0]
    x, y = batch_of(N, config, np.random.default_rng(seed))
    world = World(2, seed)

    def train(ranks):
        own = part_slices(N, ranks.size)[ranks.rank]
        for precision in precisions():
            model = ViT(config, seed=seed, precision=precision)
            grad, optimizer = np.empty(model.layout.size, np.float32), SGD(model, 0.01)
            summed = Reduction(ranks, model.layout.pieces(), grad.size, np.float32, ranks.size)
            for _ in range(3):
                progress = Progress()
                summed.start(grad, progress, N)
                model.loss_and_grad(
                    x[own], y[own], sample_weight=np.full(len(x[own]), 1 / N), out=grad, progress=progress
                )
                summed.wait()
                optimizer.step(model.weights, grad)

    world.run(train)


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


reduction.LEAST_VALUES, reduction.MOST_VALUES = 1, 4000  # else a small model's gradient goes out in one piece
for number, isa in enumerate(cvit.available_isas()):
    cvit.set_isa(isa)
    cvit.set_num_threads(3)
    option_passes(number)
    for threads in (5, 3):
        cvit.set_num_threads(threads)
        model_passes(threads)
        followed_pass(threads)
        ranks_that_train(threads)
        kernels(threads)
together = [
    threading.Thread(target=target, args=(seed,)) for seed, target in enumerate((model_passes, model_passes, kernels))
]
for thread in together:
    thread.start()
for thread in together:
    thread.join()
print("watched", ", ".join(cvit.available_isas()))
