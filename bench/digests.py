"""Digests of cvit's results: record them before a change that must keep every bit, and check them after it.

    python bench/digests.py --record bench/results/digests.json
    python bench/digests.py --check bench/results/digests.json

Small models of many shapes, the functions of arrays and each kernel of `cvit.ops` run on every instruction set of this
machine, in float32 and float64. Of every result the file keeps a hash of its bytes, dtype and shape. Results must not
depend on the number of threads: each is computed with 1, 2 and 5, and all of them must give the one digest of the file.

The bits depend on the compiler as well (where it fuses products and sums), and the inputs and fresh weights on NumPy's
version. So this is a tool and not a test: record and check on one machine with the same compiler, flags and NumPy. The
file says which compiler and NumPy they were, and `--check` warns where they differ. (Flags it cannot know.)

An entry is named "instruction set/dtype/case/result". Those of `init_weights` have "any" for the instruction set, since
NumPy alone draws them. What an infinite or huge logit does to the cross-entropy is left out on purpose.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import cvit
from cvit import Rope, ViTConfig, ops

THREADS = (1, 2, 5)
DTYPES = ("float32", "float64")
SCHEMES = ("vit", "flax-nnx", "flax-linen")
LEARNING_RATE = 0.05


@dataclass(frozen=True)
class Case:
    """A model and a batch for it. The noise on its weights has the standard deviation `spread` / sqrt(width)."""

    config: ViTConfig
    batch: int
    spread: float = 0.5


def model_cases():
    """The models by name. T is the number of tokens of an image."""
    tiny = dict(patch_size=2, channels=1, classes=3)
    small = dict(patch_size=2, classes=3)
    plain = dict(bias=False, norm_affine=False, final_norm=False)
    return {
        # Shapes at the edge of what there is.
        "depth-0": Case(ViTConfig(8, 4, width=24, depth=0, heads=2, classes=3), 3),
        "depth-0-mean": Case(ViTConfig((4, 10), width=19, depth=0, heads=1, pool="mean", **small), 4),
        "one-token": Case(ViTConfig(4, 4, width=16, depth=2, heads=2, classes=3, pool="mean"), 3),
        "width-1": Case(ViTConfig(4, width=1, depth=2, heads=1, **tiny), 3),
        "one-class": Case(ViTConfig((2, 8), 2, width=12, depth=1, heads=3, classes=1), 3),
        # Widths that are no multiple of a vector, images that are not square, and parts left out.
        "width-20": Case(ViTConfig((6, 10), width=20, depth=2, heads=4, hidden=33, pool="mean", **small), 3),
        "width-52": Case(ViTConfig((20, 12), 4, 3, 52, 2, 4, 70, 7, bias=False, gelu="erf"), 5),
        "plain": Case(ViTConfig((8, 12), width=36, depth=3, heads=3, hidden=36, eps=1e-5, **small, **plain), 3),
        "plain-mean": Case(ViTConfig(8, width=28, depth=2, heads=2, pool="mean", **small, **plain), 9),
        "no-affine": Case(ViTConfig(12, width=44, depth=2, heads=4, norm_affine=False, gelu="erf", **small), 7),
        "no-final-norm": Case(ViTConfig(10, width=32, depth=2, heads=2, final_norm=False, pool="mean", **small), 3),
        # Products whose inner dimension takes several blocks, a wide head, and scores that are far apart.
        "deep-products": Case(ViTConfig(16, 4, 3, 400, 1, 5, 1030, 1000), 3),
        "wide-head": Case(ViTConfig((18, 6), 2, 3, 400, 1, 1, 70, 3), 2),
        "far-scores": Case(ViTConfig((10, 14), width=40, depth=2, heads=2, **small), 4, spread=3.0),
        "far-scores-long": Case(ViTConfig((22, 20), width=32, depth=1, heads=2, gelu="erf", **small), 2, spread=3.0),
        # Short images, of which a task takes a few through a whole block.
        "short-5": Case(ViTConfig(4, width=24, depth=2, heads=3, **small), 70),
        "short-17": Case(ViTConfig(16, 4, 3, 64, 2, 8, 0, 10), 32),
        "short-17-odd": Case(ViTConfig(16, 4, 1, 30, 3, 2, 50, 10), 31),
        "short-65": Case(ViTConfig(16, 2, 3, 48, 1, 3, 0, 10), 32),
        "short-65-single": Case(ViTConfig(32, 4, 3, 192, 2, 3, 768, 10), 1),
        "short-80-mean": Case(ViTConfig((16, 20), 2, 1, 24, 2, 2, 40, 3, pool="mean"), 8),
        # Long images, and very long ones with so few heads that the keys of each are cut into parts.
        "long-81": Case(ViTConfig(18, width=40, depth=2, heads=2, pool="mean", **small), 3),
        "long-81-many-heads": Case(ViTConfig(18, width=16, depth=1, heads=8, pool="mean", **tiny), 20),
        "long-197": Case(ViTConfig(28, 2, 3, 48, 2, 3, 0, 10), 3),
        "long-197-single": Case(ViTConfig(224, 16, 3, 96, 1, 2, 0, 1000), 1),
        "parts-401": Case(ViTConfig(40, width=24, depth=2, heads=1, **tiny), 1),
        "parts-577": Case(ViTConfig((32, 72), width=34, depth=1, heads=2, hidden=41, **tiny), 2),
        # Options, as published families have them together.
        "clip": Case(ViTConfig(12, width=40, depth=2, heads=2, pre_norm=True, activation="quick_gelu", **small), 5),
        "dinov2": Case(ViTConfig(12, width=40, depth=2, heads=2, layer_scale=0.3, registers=3, **small), 5),
        "dinov3": Case(
            ViTConfig(
                (12, 20), width=40, depth=2, heads=2, registers=2, layer_scale=0.3, pos_tokens="none", gated=True,
                activation="silu", rope=Rope("centred", theta=100.0), qkv_bias=(True, False, True), **small,
            ),
            4,
        ),
        "eva02": Case(
            ViTConfig(
                12, width=32, depth=2, heads=4, hidden=43, gated=True, activation="silu", attn_norm=True, mlp_norm=True,
                rope=Rope(reference=(4, 4)), pool="mean", class_token=True, fc_norm=True, final_norm=False, **small,
            ),
            4,
        ),
        "learned-rotary": Case(ViTConfig(14, width=24, depth=2, heads=3, rope=Rope("mixed", theta=10.0), **small), 4),
        "siglip": Case(ViTConfig(12, width=36, depth=2, heads=3, pool="map", pool_heads=2, **small), 5),
        "aimv2": Case(
            ViTConfig(
                20, width=36, depth=2, heads=3, norm="rms", bias=False, patch_norm=True, gated=True, activation="silu",
                pool="mean", **small,
            ),
            3,
        ),
        "parallel": Case(ViTConfig(12, width=36, depth=2, heads=3, block="parallel", qk_norm=True, **small), 5),
        "post": Case(ViTConfig((18, 12), width=36, depth=2, heads=3, block="post", **small), 5),
        "pairs": Case(ViTConfig(18, width=24, depth=2, heads=3, block="pairs", layer_scale=0.3, **small), 3),
        "distilled": Case(ViTConfig(12, width=36, depth=2, heads=3, dist_token=True, dist_head=True, **small), 5),
    }  # fmt: skip


def digest(*arrays):
    """A hash of the arrays' dtypes, shapes and bytes."""
    state = hashlib.blake2b(digest_size=16)
    for array in map(np.asarray, arrays):
        state.update(f"{array.dtype.str} {array.shape} ".encode())
        state.update(array.tobytes())
    return state.hexdigest()


class Draws:
    """Normal numbers from a seed that is the case's name: drawn as float64, then rounded, so alike in both dtypes."""

    def __init__(self, name, dtype):
        self.generator = np.random.Generator(np.random.PCG64(list(name.encode())))
        self.dtype = dtype

    def __call__(self, *shape, scale=1.0):
        return (scale * self.generator.standard_normal(shape)).astype(self.dtype)

    def labels(self, count, classes):
        return self.generator.integers(classes, size=count)


# ---------------------------------------------------------------------------------------------------- what is digested
def digest_model(name, case, dtype):
    """Yield (result, digest) of everything that a model computes."""
    config, draw = case.config, Draws(name, dtype)
    # The noise gives numbers to all that fresh weights have as zero, the head above all.
    weights = cvit.init_weights(config, 1, dtype=dtype)
    weights += draw(weights.size, scale=case.spread / config.width**0.5)
    images = draw(case.batch, config.channels, *config.image_size)
    labels = draw.labels(case.batch, config.classes)

    model = cvit.ViT(config, weights)
    yield "logits", digest(model.forward(images))
    yield "features", digest(model.features(images))
    yield "gradient", digest(*model.loss_and_grad(images, labels))
    yield "gradient, smoothed labels", digest(*model.loss_and_grad(images, labels, label_smoothing=0.1))
    thrifty = cvit.ViT(config, weights, checkpoint="block")
    yield "gradient, checkpointed", digest(*thrifty.loss_and_grad(images, labels))
    yield "weights after SGD", digest(trained(config, weights, images, labels, make_sgd))
    yield "weights after AdamW", digest(trained(config, weights, images, labels, make_adamw, clip_norm=0.1))
    model.freeze()
    yield "frozen", digest(model.forward(images), model.features(images))


def make_sgd(model):
    return cvit.SGD(model, LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=0.01)


def make_adamw(model):
    return cvit.AdamW(model, LEARNING_RATE, weight_decay=0.02)


def trained(config, weights, images, labels, make_optimizer, clip_norm=None):
    """The weights after two steps. Those given are left alone."""
    model = cvit.ViT(config, weights.copy())
    optimizer = make_optimizer(model)
    for _ in range(2):
        _, gradient = model.loss_and_grad(images, labels)
        optimizer.step(model.weights, gradient, clip_norm=clip_norm)
    return model.weights


def digest_functions(name, dtype):
    """Yield (result, digest) of the plain Vision Transformer's functions of arrays."""
    draw = Draws(name, dtype)
    for label, N, C, height, width, P, D, heads, L, classes in (
        ("odd", 3, 3, 6, 10, 2, 21, 3, 2, 5),
        ("many", 16, 1, 8, 8, 2, 32, 4, 1, 10),
        ("long", 1, 2, 20, 18, 2, 26, 1, 1, 3),
    ):
        tokens = (height // P) * (width // P) + 1
        images, labels = draw(N, C, height, width), draw.labels(N, classes)
        embedding = draw(C * P * P, D, scale=(C * P * P) ** -0.5), draw(D), draw(tokens, D)
        blocks, head = draw(L, 6, D, D, scale=D**-0.5), draw(D, classes, scale=D**-0.5)
        yield f"patch_embed_with_cls, {label}", digest(cvit.patch_embed_with_cls(images, *embedding))
        yield f"vit_block, {label}", digest(cvit.vit_block(draw(N, tokens, D), *blocks[0], heads))
        yield f"vit_classify, {label}", digest(cvit.vit_classify(images, *embedding, blocks, head, heads))
        step = cvit.vit_train_step(images, labels, *embedding, blocks, head, heads, LEARNING_RATE)
        yield f"vit_train_step, {label}", digest(step)
    image = draw(11, 14, 3)  # the last row is no whole patch
    for init in ("nnx", "linen"):
        yield f"vit_forward, {init}", digest(cvit.vit_forward(7, image, 2, 20, 4, 30, 2, 5, init=init))


def digest_ops(name, dtype):
    """Yield (result, digest) of each function of `cvit.ops`, forward and backward."""
    draw = Draws(name, dtype)

    images = draw(3, 2, 9, 15)
    cut = ops.patches(images, 3)
    yield "patches", digest(cut)
    yield "patches_backward", digest(ops.patches_backward(draw(*cut.shape), images.shape[1:], 3))

    for rows, K, M in ((37, 41, 29), (1, 53, 17), (61, 1, 1), (45, 801, 35), (130, 23, 410)):
        x, w, bias, dy = draw(rows, K), draw(K, M), draw(M), draw(rows, M)
        size = f"{rows}x{K}x{M}"
        yield f"linear, {size}", digest(ops.linear(x, w))
        yield f"linear with bias, {size}", digest(ops.linear(x, w, bias))
        yield f"linear_backward, {size}", digest(*ops.linear_backward(dy, x, w))

    for rows, D in ((37, 53), (5, 1), (70, 400)):
        x, dy, scale, shift = draw(rows, D), draw(rows, D), draw(D), draw(D)
        y, mean, rstd = ops.layernorm(x)
        yield f"layernorm, {rows}x{D}", digest(y, mean, rstd)
        yield f"layernorm with scale, {rows}x{D}", digest(*ops.layernorm(x, scale, shift, eps=1e-5))
        yield f"layernorm_backward, {rows}x{D}", digest(ops.layernorm_backward(dy, x, mean, rstd)[0])
        yield f"layernorm_backward with scale, {rows}x{D}", digest(*ops.layernorm_backward(dy, x, mean, rstd, scale))

    for shape in ((2, 3, 37, 13), (5, 2, 1, 8), (40, 4, 5, 7), (1, 1, 401, 20), (1, 2, 197, 64), (1, 1, 90, 390)):
        q, k, v, do = (draw(*shape) for _ in range(4))
        o, lse = ops.attention(q, k, v)
        size = "x".join(map(str, shape))
        yield f"attention, {size}", digest(o, lse)
        yield f"attention_backward, {size}", digest(*ops.attention_backward(do, q, k, v, o, lse))

    for N, classes in ((7, 11), (3, 1), (33, 1000)):
        logits, labels = draw(N, classes, scale=3.0), draw.labels(N, classes)
        for smoothing in (0.0, 0.1):
            size = f"{N}x{classes}, smoothing {smoothing}"
            yield f"cross_entropy, {size}", digest(ops.cross_entropy(logits, labels, smoothing))
            yield f"cross_entropy_backward, {size}", digest(ops.cross_entropy_backward(logits, labels, smoothing))

    x, dy = draw(1013, scale=3.0), draw(1013)
    edges = np.array([0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 1e4, -1e4, np.inf, -np.inf], dtype)
    for form in ("tanh", "erf"):
        yield f"gelu, {form}", digest(ops.gelu(x, form), ops.gelu(edges[:-2], form))
        yield f"gelu_backward, {form}", digest(ops.gelu_backward(dy, x, form))
    for function in (ops.exp, ops.tanh, ops.erf):
        yield function.__name__, digest(function(x), function(10 * x))
        yield f"{function.__name__}, edges", digest(function(edges))


def digest_init(dtype):
    """Yield (result, digest) of fresh weights."""
    configs = {
        "cls": ViTConfig((8, 12), 4, 3, 20, 2, 4, 33, 5),
        "mean": ViTConfig(8, 4, 1, 18, 1, 2, 0, 3, pool="mean"),
        "plain": ViTConfig(8, 4, 3, 24, 2, 3, 24, 3, bias=False, norm_affine=False, final_norm=False),
    }
    for scheme in SCHEMES:
        for label, config in configs.items():
            for seed in (0, 12345):
                yield f"{scheme}, {label}, seed {seed}", digest(cvit.init_weights(config, seed, scheme, dtype))


def groups(isas):
    """Yield every group "instruction set/dtype/case", its instruction set, and a function that yields its results."""
    for dtype in DTYPES:
        if "any" in isas:
            yield f"any/{dtype}/init", "any", partial(digest_init, dtype)
        for isa in sorted(isas - {"any"}):
            yield f"{isa}/{dtype}/ops", isa, partial(digest_ops, "ops", dtype)
            yield f"{isa}/{dtype}/functions", isa, partial(digest_functions, "functions", dtype)
            for name, case in model_cases().items():
                yield f"{isa}/{dtype}/{name}", isa, partial(digest_model, name, case, dtype)


def compute(isas, only):
    """All digests of the groups that contain `only`: {entry: {number of threads: digest}}."""
    found = defaultdict(dict)
    for group, isa, results in groups(isas):
        if only not in group:
            continue
        if isa != "any":
            cvit.set_isa(isa)
        for threads in THREADS:
            cvit.set_num_threads(threads)
            for result, value in results():
                found[f"{group}/{result}"][threads] = value
    return found


# ---------------------------------------------------------------------------------------------------- record and check
def describe():
    """What the bits depend on, beside cvit's source: processor, compilers of the extensions, NumPy."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        cpu = names[0] if names else cpu
    compilers = set()
    for extension in Path(cvit.__file__).parent.glob("*.so"):  # compilers leave their name in what they compile
        compilers.update(re.findall(rb"(?:GCC: \(|[a-zA-Z ]*clang version )[ -~]+", extension.read_bytes()))
    return {
        "arch": platform.machine(), "compilers": sorted(name.decode() for name in compilers), "cpu": cpu,
        "cvit": cvit.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "system": platform.system(),
    }  # fmt: skip


def record(file, found):
    """Write the digests, or say which depend on the number of threads and write nothing."""
    unequal = [name for name, values in found.items() if len(set(values.values())) > 1]
    if unequal:
        sys.exit("\n".join([*unequal, "These depend on the number of threads: nothing is recorded."]))
    data = {"digests": {name: values[THREADS[0]] for name, values in found.items()}, "machine": describe()}
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{len(found)} digests are in {file}")


def check(data, found, isas, only):
    """Print what differs from the recorded `data` and a summary; returns whether nothing does."""
    now = describe()
    for key in ("compilers", "numpy"):
        if data["machine"][key] != now[key]:
            print(f"warning: {key} of the recording: {data['machine'][key]}, here: {now[key]}", file=sys.stderr)
    known = set(cvit.available_isas()) | {"any"}
    wanted, skipped = {}, 0
    for name, value in data["digests"].items():
        isa, group = name.partition("/")[0], name.rpartition("/")[0]
        if isa not in known:
            skipped += 1
        elif isa in isas and only in group:
            wanted[name] = value
    both = sorted(wanted.keys() & found.keys())
    differing = 0
    for name in both:
        threads = [str(count) for count, value in found[name].items() if value != wanted[name]]
        if threads:
            differing += 1
            print(f"{name} differs (with {', '.join(threads)} threads)")
    print(f"{len(both) - differing} of {len(both)} digests are equal")
    for count, text in (
        (skipped, "skipped, since this machine lacks their instruction set"),
        (len(wanted.keys() - found.keys()), "recorded, but not computed any more"),
        (len(found.keys() - wanted.keys()), "computed, but not recorded"),
    ):
        if count:
            print(f"{text}: {count}")
    return differing == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--record", type=Path, metavar="FILE", help="write the digests there")
    task.add_argument("--check", type=Path, metavar="FILE", help="compare with what is recorded there")
    parser.add_argument("--isa", choices=cvit.available_isas(), help="this instruction set alone (default: all)")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="only cases whose ISA/DTYPE/CASE contains this")
    args = parser.parse_args()
    data = None
    if args.record and not args.record.absolute().parent.is_dir():
        parser.error(f"--record: there is no folder {args.record.parent}")
    if args.check:
        try:
            data = json.loads(args.check.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--check: {error}")
        if not isinstance(data, dict) or not {"digests", "machine"} <= data.keys():
            parser.error(f"--check: {args.check} is no file of --record")
    isas = {args.isa} if args.isa else {"any", *cvit.available_isas()}
    found = compute(isas, args.only)
    if not found:
        parser.error(f"--only: no case contains {args.only!r}")
    if args.record:
        record(args.record, found)
    elif not check(data, found, isas, args.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
