"""How accurate bfloat16 is: cvit's beside PyTorch's autocast and OpenVINO's, each by its distance from more precision.

    python bench/precision.py logits [--cases "digits;b16"] [--seeds 3]      logits and gradients of one pass
    python bench/precision.py curve [--steps 300] [--seeds 3]              the losses of AdamW's steps on digits
    python bench/precision.py digits [--seeds 5]                           test accuracy after a whole training
    python bench/precision.py agreement [--pictures 1000]                  top-1 of a ViT-B/16 with float32's

Each prints a table, and writes what it is made of with --json FILE. `logits` and `curve` take float64 of the same
weights for the truth, cvit's for cvit and PyTorch's own for PyTorch. cvit's figures are the same on every machine, to
the bit of its results; those of the others are of the versions and the CPU that the heading names.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from precision_peers import Cvit, Torch, openvino_logits

import cvit
from cvit import ViTConfig
from cvit.bench.cases import CASES, Case
from cvit.bench.machine import cpu_name
from cvit.data import ArrayFeed, digits

LR = 1e-3
B16_IMAGES = 2  # PyTorch's float64 of more takes minutes


def norm_error(found, truth):
    """The relative error of an array in the Euclidean norm."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def largest_error(found, truth):
    """The largest error of an entry, relative to the largest entry."""
    return float(np.abs(found - truth).max() / np.abs(truth).max())


# ----------------------------------------------------------------------------------------------- logits and gradients


def random_problem(name, seed):
    """A case's configuration, weights of trained scale, images and labels, as `cvit bench` has them."""
    case = Case.named(name, **(dict(batch=B16_IMAGES) if name == "b16" else {}))
    with tempfile.TemporaryDirectory() as folder:
        case.write_arrays(Path(folder) / "arrays.npz", seed)
        arrays = dict(np.load(Path(folder) / "arrays.npz"))
    images, labels = arrays.pop("images"), arrays.pop("labels")
    return case.config, cvit.Layout.of(case.config).pack(arrays), images, labels


def trained_problem(seed, steps=300):
    """The digits case's model after some steps in float32, on the pictures that it has not seen."""
    case, (train, test) = Case.named("digits"), digits()
    model = Cvit(case.config, cvit.ViT(case.config, seed=seed).weights, "f32")
    for x, y in batches(train, case.batch, steps, seed):
        model.step(x, y, LR)
    return case.config, model.model.weights, test.images, test.labels


def tensor_errors(layout, found, truth):
    """The relative error of each tensor's gradient; a key bias has none, it is rounding alone."""
    found, truth = layout.views(found), layout.views(truth)
    return {name: norm_error(found[name], truth[name]) for name in truth if not name.endswith("attn.k.bias")}


def errors_of_a_pass(config, weights, x, y):
    """Errors of logits and gradient, of cvit in float32 and bfloat16 and of PyTorch's autocast."""
    reference = Cvit(config, weights, "f64")
    logits, (_, grad) = reference.logits(x), reference.loss_and_grad(x, y)
    participants = {"f32": Cvit(config, weights, "f32"), "bf16": Cvit(config, weights, "bf16")}
    participants["autocast"] = Torch(config, weights, "autocast")
    row = {}
    for who, model in participants.items():
        found, (_, found_grad) = model.logits(x), model.loss_and_grad(x, y)
        tensors = tensor_errors(cvit.Layout.of(config), found_grad, grad)
        row[who] = dict(
            logits=norm_error(found, logits), largest=largest_error(found, logits),
            agreement=float((found.argmax(1) == logits.argmax(1)).mean()),
            gradient=norm_error(found_grad, grad), largest_gradient=largest_error(found_grad, grad),
            worst_tensor=max(tensors.values()), tensors=tensors,
        )  # fmt: skip
    if len(x) * config.forward_flops(1) < 1e11:  # both references are the same function
        theirs = Torch(config, weights, "f64")
        assert largest_error(theirs.logits(x), logits) < 1e-10
        assert largest_error(theirs.loss_and_grad(x, y)[1], grad) < 1e-9
    return row


COLUMNS = ("logits", "largest", "gradient", "largest_gradient", "worst_tensor")


def run_logits(args):
    print(f"relative errors against float64, root mean square of {args.seeds} seeds; the last row is bf16 / autocast")
    print(f"{'case':18}{'who':10}" + "".join(f"{column.replace('_', ' '):>18}" for column in COLUMNS))
    rows, lost = [], []
    problems = {name: functools.partial(random_problem, name) for name in CASES} | {"digits, trained": trained_problem}
    for name in args.cases.split(";") if args.cases else problems:
        passes = [errors_of_a_pass(*problems[name](seed)) for seed in range(args.seeds)]
        size = {
            who: {column: np.sqrt(np.mean([errors[who][column] ** 2 for errors in passes])) for column in COLUMNS}
            for who in passes[0]
        }
        for who, row in size.items():
            print(f"{name:18}{who:10}" + "".join(f"{row[column]:18.2e}" for column in COLUMNS))
        ratios = {column: size["bf16"][column] / size["autocast"][column] for column in COLUMNS}
        print(f"{name:18}{'ratio':10}" + "".join(f"{ratio:18.2f}" for ratio in ratios.values()), flush=True)
        rows.append(dict(case=name, errors=passes))
        lost += [f"{name}: {column.replace('_', ' ')}" for column, ratio in ratios.items() if ratio > 1]
    print("\ncvit's error is larger than autocast's: " + ("; ".join(lost) or "nowhere"))
    return rows


# ------------------------------------------------------------------------------------------------------------- curves


def batches(data, size, steps, seed=0):
    """The first batches of a data set's epochs."""
    feed, step, epoch = ArrayFeed(data.images, data.labels, size, seed=seed), 0, 0
    while True:
        for batch in feed.epoch(epoch):
            if step == steps:
                return
            yield batch.images, batch.targets
            step += 1
        epoch += 1


def curves_of(seed, steps, size, lr):
    """The losses of AdamW's steps from the same weights on the same batches, by who took them."""
    config, (train, _) = Case.named("digits").config, digits()
    weights = cvit.ViT(config, seed=seed).weights
    participants = {f"cvit {name}": Cvit(config, weights, name) for name in ("f64", "f32", "bf16")}
    participants |= {f"torch {name}": Torch(config, weights, name) for name in ("f64", "autocast")}
    curves = {who: [] for who in participants}
    for x, y in batches(train, size, steps, seed):
        for who, model in participants.items():
            curves[who].append(model.step(x, y, lr))
    return curves


def run_curve(args):
    print(f"digits, {args.steps} steps of AdamW at {args.lr}, batches of {args.batch}: distance from float64's losses")
    print(f"{'seed':>4}  {'who':16}{'mean':>10}{'rms':>10}{'largest':>10}{'last loss':>12}{'float64':>10}")
    rows, sums = [], {}
    for seed in range(args.seeds):
        curves = curves_of(seed, args.steps, args.batch, args.lr)
        rows.append(dict(seed=seed, curves=curves))
        for who in ("cvit f32", "cvit bf16", "torch autocast"):
            truth = np.array(curves[who.split()[0] + " f64"])
            distance = np.abs(np.array(curves[who]) - truth)
            figures = (distance.mean(), np.sqrt((distance**2).mean()), distance.max())
            sums.setdefault(who, []).append(figures)
            last = np.mean(curves[who][-20:]), truth[-20:].mean()
            print(
                f"{seed:4}  {who:16}" + "".join(f"{v:10.2e}" for v in figures) + f"{last[0]:12.4f}{last[1]:10.4f}",
                flush=True,
            )
    for who, figures in sums.items():
        print(f"mean  {who:16}" + "".join(f"{v:10.2e}" for v in np.mean(figures, axis=0)))
    return rows


# ----------------------------------------------------------------------------------------------------------- accuracy


def with_precision(model, precision):
    """A new model of the same weights."""
    return cvit.ViT(
        model.config, model.weights.copy(), precision=precision, preprocessing=model.preprocessing,
        class_names=model.class_names,
    )  # fmt: skip


def run_digits(args):
    accuracy = importlib.import_module("accuracy")
    settings = {} if args.epochs == 0 else dict(epochs=args.epochs)
    found = {"f32": [], "bf16": []}
    for seed in range(args.seeds):
        for precision, accuracies in found.items():
            job = accuracy.prepare("digits", seed=seed, **settings)
            job = dataclasses.replace(job, model=with_precision(job.model, precision))
            seconds, last = accuracy.with_cvit(job, job.test or job.validation, float("inf"))[-1]
            accuracies.append(last)
            print(f"seed {seed}, {precision}: {last:.2%} after {seconds:.1f} s", flush=True)
    means = {name: statistics.mean(accuracies) for name, accuracies in found.items()}
    for name, accuracies in found.items():
        print(f"{name:5} mean {means[name]:.2%}, {min(accuracies):.2%} to {max(accuracies):.2%}")
    print(f"bf16 - f32: {100 * (means['bf16'] - means['f32']):+.2f} points")
    return found


# ---------------------------------------------------------------------------------------------------------- agreement


def trained_scale(config, seed=0):
    """Random weights whose pass looks like a trained model's: the same sizes everywhere, attention that chooses.

    Matrices are normal with variance 1 / inputs, those of q and k twice that, so that scores have a standard deviation
    of about 2 and a query looks at few keys; biases have 0.1, norm scales 1 +- 0.1, positions and class token 0.3. A
    fresh model's would not do: its head is zero, its attention even, and all pictures of noise look the same to it.
    """
    rng, layout = np.random.default_rng(seed), cvit.Layout.of(config)
    weights = np.empty(layout.size, np.float32)
    for name, view in layout.views(weights).items():
        view[...] = rng.standard_normal(view.shape, np.float32)
        if name.endswith(("cls_token", "pos_embed")):
            view *= 0.3
        elif view.ndim == 2:
            view *= (2.0 if ".attn.q." in name or ".attn.k." in name else 1.0) ** 0.5 * len(view) ** -0.5
        else:
            view *= 0.1
            view += "norm" in name and name.endswith("weight")
    return weights


def centre(model, pictures):
    """Take the pictures' mean logits from the head's bias: else a few classes win whatever the picture."""
    model.layout.views(model.weights)["head.bias"][...] -= model.forward(pictures).mean(axis=0)


def noise(config, count, rng):
    return rng.standard_normal((count, config.channels, *config.image_size), np.float32)


def photographs(model, count, rng):
    """Random crops of scikit-learn's two photographs: 8 to 100 % of the area, mirrored, brighter or darker, resized."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    sources, crops = [Image.fromarray(image) for image in load_sample_images().images], []
    for number in range(count):
        picture = sources[number % len(sources)]
        area, ratio = rng.uniform(0.08, 1.0) * picture.width * picture.height, np.exp(rng.uniform(-0.3, 0.3))
        width = min(round((area * ratio) ** 0.5), picture.width)
        height = min(round((area / ratio) ** 0.5), picture.height)
        left, top = rng.integers(picture.width - width + 1), rng.integers(picture.height - height + 1)
        crop = picture.crop((left, top, left + width, top + height)).resize((256, 256), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crops.append(np.clip(np.asarray(crop) * rng.uniform(0.6, 1.4), 0, 255).astype(np.uint8))
    return model.preprocess(crops)


def gaps(logits):
    """How far each picture's first class is before the second, in standard deviations of its logits."""
    ordered = np.sort(logits, axis=1)
    return (ordered[:, -1] - ordered[:, -2]) / logits.std(axis=1)


def in_pieces(model, pictures, size=20):
    """Logits, with a word on how far it is."""
    found = []
    for at in range(0, len(pictures), size):
        found.append(model.logits(pictures[at : at + size]))
        print(f"\r{at + size:6} of {len(pictures)}", end="", flush=True)
    print("\r" + " " * 20 + "\r", end="")
    return np.concatenate(found)


def run_agreement(args):
    config = ViTConfig.variant(args.variant, classes=1000)
    rng, weights = np.random.default_rng(1), trained_scale(config)
    single = Cvit(config, weights, "f32")
    centre(single.model, np.concatenate([noise(config, 16, rng), photographs(single.model, 16, rng)]))
    weights = single.model.weights
    wanted, rows = args.peers.split(","), []
    print(f"{'pictures':13}{'who':28}{'top-1 as float32':>18}{'error of logits':>17}{'largest':>10}")
    for kind, pictures in (("noise", noise(config, args.pictures, rng)), ("photographs", None)):
        pictures = photographs(single.model, args.pictures, rng) if pictures is None else pictures
        truth = in_pieces(single, pictures)
        classes, most = np.unique(truth.argmax(1), return_counts=True)
        found = {"cvit bf16": in_pieces(Cvit(config, weights, "bf16"), pictures)}
        if "torch" in wanted:
            found["torch autocast"] = in_pieces(Torch(config, weights, "autocast"), pictures)
        if "openvino" in wanted:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                single.model.save(path)
                logits, taken = openvino_logits(path, "bf16", pictures)
            found[f"OpenVINO, bf16 asked, {taken} taken"] = logits
        for who, logits in found.items():
            same = float((logits.argmax(1) == truth.argmax(1)).mean())
            errors = norm_error(logits, truth), largest_error(logits, truth)
            rows.append(dict(pictures=kind, who=who, count=len(pictures), agreement=same, errors=errors))
            print(f"{kind:13}{who:28}{same:18.1%}{errors[0]:17.2e}{errors[1]:10.2e}", flush=True)
        print(
            f"{kind}: {len(pictures)} pictures in {len(classes)} classes, {most.max()} in the largest; the first class "
            f"is {np.median(gaps(truth)):.3f} standard deviations of the logits before the second (median)"
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(run, **options):
        sub = commands.add_parser(run.__name__.removeprefix("run_"))
        sub.set_defaults(run=run)
        sub.add_argument("--json")
        for name, default in options.items():
            sub.add_argument(f"--{name}", type=str if default is None else type(default), default=default)
        return sub

    command(run_logits, cases="", seeds=1)
    command(run_curve, steps=300, batch=32, lr=LR, seeds=3)
    command(run_digits, seeds=5, epochs=0)
    command(run_agreement, variant="B/16", pictures=100, peers="torch,openvino")
    args = parser.parse_args()
    print(f"{cpu_name()}, cvit's {cvit.get_isa()}, {cvit.get_num_threads()} threads, {peer_versions()}")
    rows = args.run(args)
    if args.json:
        Path(args.json).write_text(json.dumps(rows), encoding="utf-8")


def peer_versions():
    """Of what is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "openvino"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
