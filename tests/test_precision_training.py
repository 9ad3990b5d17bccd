"""Training of models of precision "bf16": optimizers, moving averages and runs keep it, to the same bits everywhere."""

import numpy as np
import pytest
from checks import on_all_isas, same_bits
from precision_cases import SMALL, batch, model, weights

from cvit import SGD, AdamW, Layout, ViT
from cvit.engine import update
from cvit.train.ema import EMA
from cvit.train.loop import Loop


def steps(made, count=3, optimizer=AdamW, **options):
    """Weights after some steps of an optimizer on a model, and the gradients' norms."""
    optimizer = optimizer(made, 1e-2, weight_decay=0.05, **options)
    norms = []
    for step in range(count):
        _, grad = made.loss_and_grad(*batch(seed=step))
        norms.append(optimizer.step(made.weights, grad, clip_norm=1.0))
    return made.weights.copy(), norms


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_optimizers_take_the_models_precision(optimizer, monkeypatch):
    asked = []
    for name in ("adamw", "sgd", "sum_of_squares", "average"):
        original = getattr(update, name)
        monkeypatch.setattr(update, name, lambda *args, f=original: asked.append(args[-1]) or f(*args))
    made = model()
    steps(made, 1, optimizer)
    EMA(made).update(made.weights)
    assert asked == ["bf16"] * 3 and optimizer(made).precision == "bf16"
    assert optimizer(made, dtype=np.float32).precision == optimizer(made.layout).precision == "f32"
    assert optimizer(made.layout, precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match="dtype must be float32 for precision 'bf16', got float64"):
        optimizer(made, dtype=np.float64, precision="bf16")
    with pytest.raises(ValueError, match="precision must be one of"):
        optimizer(made, precision="half")


@pytest.mark.parametrize("optimizer", [AdamW, lambda layout, **options: SGD(layout, momentum=0.9, **options)])
def test_a_step_has_the_same_bits_on_every_isa(optimizer):
    """With weights and gradients given: norm, clipping, step and moving average."""
    layout = Layout.of(SMALL)

    def trained():
        flat = weights()
        chosen, average = optimizer(layout, precision="bf16", weight_decay=0.05), EMA(model())
        norms = []
        for step in range(3):
            norms.append(chosen.step(flat, weights(seed=step + 1), lr=1e-2, clip_norm=0.7))
            average.update(flat)
        return flat, average.weights, norms

    on_all_isas(trained)


def test_a_training_has_the_same_bits_on_every_isa():
    """Forward, backward, clipping, optimizer and moving average: what `fit` leaves of two epochs."""
    data = batch(12)

    def trained():
        loop = Loop(model(), data, data, epochs=2, batch_size=5, clip_norm=0.5, ema=EMA(model()), drop_path=0.1)
        loop.run()
        return loop.model.weights, loop.ema.weights, loop.evaluated.forward(data[0])

    on_all_isas(trained)


def test_an_optimizers_state_keeps_its_precision():
    made = model()
    one, other = AdamW(made), AdamW(made)
    _, grad = made.loss_and_grad(*batch())
    one.step(made.weights, grad)
    other.load_state_dict(one.state_dict())
    assert other.precision == "bf16" and same_bits(other.m, one.m)


def test_fit_evaluates_the_moving_average_in_the_models_precision():
    made, data = model(), batch(12)
    loop = Loop(made, data, data, epochs=1, batch_size=4, ema=EMA(made))
    loop.run()
    assert loop.evaluated.precision == loop.optimizer.precision == "bf16"
    assert same_bits(loop.evaluated.forward(data[0]), ViT(SMALL, loop.ema.weights, precision="bf16").forward(data[0]))


def test_a_run_goes_on_in_its_own_precision_alone():
    data = batch(12)
    loops = [Loop(model(), data, epochs=2, batch_size=4, seed=3) for _ in range(2)]
    loops[0]._epoch()
    arrays, facts = loops[0].state()
    loops[1].restore({name: values.copy() for name, values in arrays.items()}, facts)
    for loop in loops:
        loop.run()
    assert same_bits(loops[0].model.weights, loops[1].model.weights)
    other = Loop(model(precision="f32"), data, epochs=2, batch_size=4)
    with pytest.raises(ValueError, match="the run was trained in precision 'bf16', so it cannot go on in 'f32'"):
        other.restore(arrays, facts)
    del facts["precision"]  # as runs wrote it before there were precisions
    other.restore(arrays, facts)
