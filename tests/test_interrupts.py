"""Ctrl-C at any line of a training: what is saved then goes on to the bits of a run that was left alone."""

import contextlib
import os
import random
import signal
import sys
import threading

import numpy as np
import pytest
from test_loop import IMAGES, LABELS, TEST, model_of
from test_runs import TINY, archive, weights_in

import cvit
from cvit.runs.training import train
from cvit.train import EMA, AdamW, loop
from cvit.train.interrupts import held_back
from cvit.train.loop import Loop

PACKAGES = tuple(os.path.join(os.path.dirname(cvit.__file__), name) + os.sep for name in ("train", "runs"))


@pytest.fixture(autouse=True)
def pythons_own_answer():
    """pytest may run where SIGINT is ignored, in a shell's background for instance; and many runs are one thread's."""
    cvit.set_num_threads(1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def traced(call, interrupt_at=None):
    """`call()`, with a SIGINT before the line of that number, of those of cvit.train and cvit.runs.

    Returns its result, or None where the interrupt came out of it, and the number of lines.
    """
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGES):
            return None
        if event == "line":
            lines += 1
            if lines == interrupt_at:
                signal.raise_signal(signal.SIGINT)
        return trace

    sys.settrace(trace)
    try:
        return call(), lines
    except KeyboardInterrupt:
        return None, lines
    finally:
        sys.settrace(None)


def loop_of():
    model = model_of()
    return Loop(
        model, (IMAGES[:20], LABELS[:20]), TEST, epochs=2, batch_size=16, optimizer=AdamW(model), ema=EMA(model, 0.9),
        drop_path=0.1, clip_norm=1.0,
    )  # fmt: skip


def test_a_loop_interrupted_at_any_line():
    whole = loop_of()
    _, lines = traced(whole.run)
    assert lines > 300
    for at in sorted(random.Random(0).sample(range(1, lines + 1), 40)):
        stopped = loop_of()
        traced(stopped.run, at)
        arrays, facts = stopped.state()
        resumed = loop_of()
        resumed.restore(arrays, facts)
        assert not resumed.run().interrupted
        np.testing.assert_array_equal(resumed.model.weights, whole.model.weights, err_msg=f"line {at}")
        np.testing.assert_array_equal(resumed.evaluated.weights, whole.evaluated.weights, err_msg=f"line {at}")
        assert [epoch[:6] for epoch in resumed.history.epochs] == [epoch[:6] for epoch in whole.history.epochs]


@pytest.mark.parametrize("before", range(6))
def test_an_interrupt_just_before_it_is_held_back(monkeypatch, before):
    """Nobody is told of a step that was not taken, the first one or another."""
    whole, stopped, told, entered = loop_of(), loop_of(), [], 0
    whole.run()

    @contextlib.contextmanager
    def late():
        nonlocal entered
        entered += 1
        if entered > before:
            raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(loop, "held_back", late)
        stopped.on_step = told.append
        assert stopped.run().interrupted
    assert (
        len(told) == stopped.position.total == before - before // 3
    )  # an epoch has two steps, and is held back itself
    resumed = loop_of()
    resumed.restore(*stopped.state())
    resumed.run()
    np.testing.assert_array_equal(resumed.model.weights, whole.model.weights)


def test_a_run_interrupted_at_any_line(tmp_path):
    options = dict(TINY, epochs=2, ema=0.9)
    data = archive(tmp_path / "stripes.npz", count=48)
    _, lines = traced(lambda: train(data, out=tmp_path / "whole", **options))
    expected = weights_in(tmp_path / "whole")
    for at in sorted(random.Random(0).sample(range(lines // 20, lines), 10)):
        out = tmp_path / str(at)
        traced(lambda: train(data, out=out, **options), at)
        train(data, out=out, **options, resume=(out / "run.json").exists())
        for one, other in zip(expected, weights_in(out)):
            np.testing.assert_array_equal(one, other, err_msg=f"line {at}")


def test_held_back_to_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done == ["all of it"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_handler_is_called_at_the_end():
    came = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    with held_back():
        signal.raise_signal(signal.SIGINT)
        assert not came
    assert came == [signal.SIGINT]


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_back():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_other_threads_have_nothing_to_hold_back():
    errors = []

    def work():
        try:
            with held_back():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
