"""A run's folder belongs to one process: others are refused, and nothing is lost where one comes at a bad moment."""

import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from test_runs import TINY, archive, weights_in

from cvit.runs.folder import Folder
from cvit.runs.training import opened, run_job, train

FORK = multiprocessing.get_context("fork")
PREPARED = {name: value for name, value in TINY.items() if name != "pictures"}
REFUSED = ("another process trains in this folder", "holds a run already")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return archive(tmp_path / "stripes.npz")


def files_of(folder):
    """The content of every file in a run's folder, by its path."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def assert_same_weights(one, other):
    for expected, found in zip(weights_in(one), weights_in(other)):
        np.testing.assert_array_equal(found, expected)


# ----------------------------------------------------------------------------------------------------- two at one time
@pytest.mark.parametrize("out", ["run", None], ids=["one folder", "folders without a name"])
def test_processes_that_begin_at_the_same_moment(data, out):
    """Each has a folder for itself or is refused, and whoever was not refused ends with the bits of a run alone."""
    train(data, out="alone", **TINY)

    def child(start, told):
        start.wait()
        try:
            told.put((train(data, out=out, **TINY).folder, None))
        except OSError as error:
            told.put((None, str(error)))

    for _ in range(4):
        start, told = FORK.Barrier(4), FORK.Queue()
        processes = [FORK.Process(target=child, args=(start, told)) for _ in range(4)]
        for process in processes:
            process.start()
        outcomes = [told.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(60)
        folders = [folder for folder, _ in outcomes if folder]
        refusals = [text for _, text in outcomes if text]
        assert folders and len(set(folders)) == len(folders)
        assert all(any(reason in text for reason in REFUSED) for text in refusals), refusals
        for folder in folders:
            assert_same_weights("alone", folder)
            shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_run_that_goes_on_is_neither_resumed_nor_overwritten(data, how):
    train(data, out="alone", **TINY)
    tried = []

    def on_step(step):
        if (step.epoch, step.step) in ((1, 2), (3, 1)):  # before its first checkpoint, and later
            with pytest.raises(BlockingIOError, match="another process trains in this folder"):
                train(data, out="run", **{how: True}, **TINY)
            tried.append(step)

    train(data, out="run", on_step=on_step, **TINY)
    assert len(tried) == 2
    assert_same_weights("alone", "run")


def test_a_folder_that_another_process_fills_after_it_was_chosen(data):
    """The pictures are read between the choice and the beginning: both had found it free."""
    jobs = [opened(data, out="run", **PREPARED, seed=seed) for seed in (0, 1)]
    run_job(*jobs[0], pictures=False)
    before = files_of("run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        run_job(*jobs[1], pictures=False)
    assert files_of("run") == before


def test_a_run_that_another_process_overwrites_after_it_was_chosen(data):
    train(data, out="run", **TINY)
    job, folder = opened(data, out="run", resume=True)
    train(data, out="run", overwrite=True, **TINY, seed=1)
    before = files_of("run")
    with pytest.raises(ValueError, match=r"holds another run, .*recipe\.seed was 1, is 0"):
        run_job(job, folder, resume=True, pictures=False)
    assert files_of("run") == before


# ---------------------------------------------------------------------------------------- a folder that goes or is shut
@pytest.mark.parametrize("save_minutes", [0.0, 10.0], ids=["a checkpoint a step", "a checkpoint an epoch"])
@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("step", [(2, 1), (3, 6)], ids=["in an epoch", "at the end"])
def test_a_folder_that_is_removed_during_the_run(data, save_minutes, replaced, step):
    """The run ends, and writes nothing where its folder was: another run may hold what stands there by now."""

    def on_step(now):
        if (now.epoch, now.step) == step:
            os.rename("run", "elsewhere")
            if replaced:
                os.mkdir("run")

    with pytest.raises(FileNotFoundError, match="the run's folder was removed or replaced") as caught:
        train(data, out="run", on_step=on_step, save_minutes=save_minutes, **TINY)
    assert caught.value.filename == "run"
    assert not replaced or os.listdir("run") == []
    assert replaced or not os.path.exists("run")
    train(data, out="alone", **TINY)
    train(None, out="elsewhere", resume=True, pictures=False)  # what had been written goes on where it is
    assert_same_weights("alone", "elsewhere")


def as_nobody(function):
    """`function()` in a process without root's rights; True or the error."""
    told, child = FORK.Pipe(duplex=False)

    def run():
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            child.send((function(), None))
        except OSError as error:
            child.send((type(error), error.filename))

    process = FORK.Process(target=run)
    process.start()
    answer = told.recv()
    process.join(60)
    return answer


def test_a_folder_that_may_only_be_read(monkeypatch):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folder is shut to others
        monkeypatch.chdir(place)
        os.chmod(place, 0o755)
        archive(Path("stripes.npz"))
        train("stripes.npz", out="begun", **TINY, on_step=_stop_in_epoch_2)
        os.mkdir("shut", 0o555)
        os.chmod("begun", 0o555)
        before = files_of("begun")
        for name, options in (("shut", TINY), ("shut/run", TINY), ("begun", dict(resume=True, pictures=False))):
            kind, named = as_nobody(lambda: train("stripes.npz", out=name, **options).folder)
            assert kind is PermissionError and named.startswith(name)
        assert os.listdir("shut") == [] and files_of("begun") == before
        os.chmod("shut", 0o755), os.chmod("begun", 0o755)


def _stop_in_epoch_2(step):
    if step.epoch == 2:
        raise KeyboardInterrupt


# --------------------------------------------------------------------------------------------------- killed in between
def test_killed_while_a_run_is_overwritten(data):
    """Before every call that removes or replaces a file: what is left is a run, to be resumed or overwritten."""
    short = {**TINY, "epochs": 1, "save_minutes": 0.0}
    for seed in (0, 1):
        train(data, out=f"whole-{seed}", **short, seed=seed)

    def overwrite(call):
        left = [call]

        def killed(function):
            def stop(*args, **options):
                if left[0] == 0:
                    os._exit(1)
                left[0] -= 1
                return function(*args, **options)

            return stop

        for name in ("unlink", "rmdir", "replace"):
            setattr(os, name, killed(getattr(os, name)))
        train(data, out="run", overwrite=True, **short, seed=1)
        os._exit(0)

    for call in range(12):
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree("whole-0", "run")
        Path("run/notes.txt").write_text("mine")
        process = FORK.Process(target=overwrite, args=(call,))
        process.start()
        process.join(60)
        assert process.exitcode == 1 and Folder("run").is_run, f"killed before call {call}"
        if call % 2:
            train(data, out="run", overwrite=True, **short, seed=1)
            assert_same_weights("whole-1", "run")
        else:
            seed = Folder("run").read_facts()["settings"]["recipe"]["seed"]
            train(None, out="run", resume=True, pictures=False)
            assert_same_weights(f"whole-{seed}", "run")
        assert Path("run/notes.txt").read_text() == "mine"
