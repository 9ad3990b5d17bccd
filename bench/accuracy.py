"""How well and how fast a recipe trains: cvit, torch + timm with the same recipe, scikit-learn's SVC, on one data set.

    python bench/accuracy.py digits --seeds 5
    python bench/accuracy.py fashion.npz --seeds 1 --with cvit,torch --json fashion.json

All see the same pictures in the same parts. torch + timm has cvit's first weights, batches, augmentation, learning
rates and weight decay, so that what differs is the arithmetic and its speed; its batches come from cvit's own feed.
Runs alternate, seed by seed. Accuracies are those of the last epoch's model on the test pictures, or where there are
none on those held out; "to" is the time to the first epoch that is as accurate as --target.
"""

import argparse
import importlib
import json
import math
import statistics
import tempfile
import time

import numpy as np

from cvit.engine.runtime import get_num_threads
from cvit.runs import prepare
from cvit.train import evaluate_checked
from cvit.train.ema import EMA
from cvit.train.loop import Loop


def with_cvit(job, judge, limit):
    """(seconds, accuracy) after every epoch, until `limit` seconds are over."""
    recipe, curve, start, out = job.recipe, [], time.perf_counter(), [0.0]

    def on_epoch(epoch):
        now = time.perf_counter()
        accuracy = evaluate_checked(loop.evaluated, judge).accuracy
        curve.append((now - start - out[0], accuracy))
        out[0] += time.perf_counter() - now
        if now - start - out[0] > limit:
            raise KeyboardInterrupt

    loop = Loop(
        job.model, job.feed, epochs=recipe.epochs, optimizer=recipe.make_optimizer(job.model, job.trained),
        schedule=recipe.schedule(job.feed.steps), clip_norm=recipe.clip_norm, accumulate=recipe.accumulate,
        label_smoothing=0.0 if recipe.mixing else recipe.label_smoothing, drop_path=recipe.drop_path,
        ema=None if recipe.ema is None else EMA(job.model, recipe.ema), seed=recipe.seed, on_epoch=on_epoch,
    )  # fmt: skip
    loop.run()
    return curve


def with_torch(job, judge, limit):
    """The same with torch and timm: module, loss, gradient, clipping and AdamW are theirs."""
    importlib.import_module("cvit.families.census.peers")  # lets torchvision be imported beside a CPU build of torch
    import timm
    import torch

    torch.set_num_threads(get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        job.model.save(folder, names="timm")
        module = timm.create_model(f"local-dir:{folder}", pretrained=True, drop_path_rate=job.recipe.drop_path)
    recipe = job.recipe
    assert recipe.optimizer == "adamw" and recipe.layer_decay == 1 and job.trained is None, "not the same recipe"
    decay = [
        p for name, p in module.named_parameters() if p.ndim > 1 and "embed" not in name.replace("patch_embed", "")
    ]
    others = [p for p in module.parameters() if all(p is not q for q in decay)]
    groups = [dict(params=decay, weight_decay=recipe.weight_decay), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    average = None if recipe.ema is None else timm.utils.ModelEmaV3(module, decay=recipe.ema, use_warmup=True)
    schedule, smoothing = recipe.schedule(job.feed.steps), 0.0 if recipe.mixing else recipe.label_smoothing
    curve, start, out, step = [], time.perf_counter(), 0.0, 0
    for epoch in range(recipe.epochs):
        module.train()
        for batch in job.feed.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            logits = module(torch.from_numpy(batch.images))
            targets = torch.from_numpy(np.asarray(batch.targets))
            loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            optimizer.step()
            if average is not None:
                average.update(module, step)
            step += 1
        now = time.perf_counter()
        judged = (module if average is None else average.module).eval()
        with torch.inference_mode():
            right = sum(
                int((judged(torch.from_numpy(batch.images)).argmax(1).numpy() == batch.targets).sum())
                for batch in judge.plain(256)
            )
        curve.append((now - start - out, right / judge.images))
        out += time.perf_counter() - now
        if curve[-1][0] > limit:
            break
    return curve


def with_svc(job, judge, limit):
    """scikit-learn's support vector classifier on the pixels, at most 10,000 of the training pictures."""
    from sklearn.svm import SVC

    start = time.perf_counter()
    rng = np.random.default_rng(job.recipe.seed)
    chosen = np.sort(rng.permutation(len(job.found.train))[:10_000])
    x = job.found.train.plain(chosen, job.how).reshape(len(chosen), -1)
    classifier = SVC(C=10).fit(x, job.found.train.labels[chosen])
    seconds = time.perf_counter() - start
    right = sum(
        int((classifier.predict(batch.images.reshape(len(batch.images), -1)) == batch.targets).sum())
        for batch in judge.plain(1024)
    )
    return [(seconds, right / judge.images)]


PARTICIPANTS = {"cvit": with_cvit, "torch": with_torch, "svc": with_svc}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--with", dest="participants", default="cvit,torch,svc")
    parser.add_argument("--target", type=float, default=0.0, help="accuracy whose time is told")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of training, after which a participant stops")
    parser.add_argument("--json")
    args = parser.parse_args()
    settings = {}
    for pair in args.set:
        name, _, value = pair.partition("=")
        settings[name] = json.loads(value)
    results = {name: [] for name in args.participants.split(",")}
    for seed in range(args.seeds):
        for name in results:
            job = prepare(args.data, seed=seed, **settings)
            curve = PARTICIPANTS[name](job, job.test or job.validation, args.seconds)
            results[name].append(curve)
            print(f"{name}, seed {seed}: {curve[-1][1]:.2%} after {curve[-1][0]:.1f} s", flush=True)
    print(f"\n{'':8}{'accuracy, mean':>16}{'least':>9}{'most':>9}{'seconds':>10}" + (" to" if args.target else ""))
    for name, curves in results.items():
        last = [curve[-1][1] for curve in curves]
        seconds = statistics.median(curve[-1][0] for curve in curves)
        line = f"{name:8}{statistics.mean(last):16.2%}{min(last):9.2%}{max(last):9.2%}{seconds:10.1f}"
        if args.target:
            reached = [next((t for t, a in curve if a >= args.target), math.inf) for curve in curves]
            line += f"  {args.target:.1%} after {statistics.median(reached):.1f} s"
        print(line)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(dict(data=args.data, threads=get_num_threads(), settings=settings, curves=results), file)


if __name__ == "__main__":
    main()
