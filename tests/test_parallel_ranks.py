"""Ranks: what launchers say, what ranks tell each other, and how a run ends when one of them has failed."""

import math
import os
import re
import sys
import time

import mpi_runs
import numpy as np
import pytest
from test_isa import python

import cvit
from cvit.engine import runtime, team
from cvit.parallel import cores, messages, ranks
from cvit.parallel.ranks import ALONE

LAUNCHERS = {
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"},
    "MPICH": {"PMI_SIZE": "2", "PMI_RANK": "0"},
    "MVAPICH": {"MV2_COMM_WORLD_SIZE": "3"},
    "Slurm's pmix": {"PMIX_RANK": "0", "SLURM_NTASKS": "2"},
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """The tests themselves may run as a task of Slurm."""
    for name in (*ranks.SIZES, "PMIX_RANK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


# ----------------------------------------------------------------------------------------------------- one process alone


@pytest.mark.parametrize("environment", LAUNCHERS.values(), ids=list(LAUNCHERS))
def test_a_launcher_of_several_processes_is_seen(monkeypatch, environment):
    assert not ranks.launched()
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert ranks.launched()
    for name in environment:
        if name.endswith(("SIZE", "NTASKS")):
            monkeypatch.setenv(name, "1")
    assert not ranks.launched() and ranks.world() is ALONE


@pytest.mark.parametrize(
    "environment",
    [{}, {"SLURM_NTASKS": "4"}, {"PMIX_RANK": "0"}, {"PMI_SIZE": ""}, {"PMI_SIZE": "two"}, {"PMI_SIZE": "-3"}],
)
def test_what_is_no_launcher_of_several(monkeypatch, environment):
    """Slurm's number of tasks also stands in the environment of a job's script, which is one process."""
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert not ranks.launched() and ranks.world() is ALONE


def test_a_process_alone_does_without_mpi4py():
    code = """if True:
        import sys, cvit
        from cvit.parallel import ranks
        assert ranks.world() is ranks.of(None) is ranks.ALONE
        assert not [name for name in sys.modules if name.startswith("mpi4py")]
        """
    for environment in ({}, {"OMPI_COMM_WORLD_SIZE": "1"}):
        told = python(code, **environment)
        assert told.returncode == 0, told.stderr


def test_without_mpi4py_the_error_names_the_extra(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape('pip install "cvit-cpu[mpi]"')):
        ranks.world()


def test_without_an_mpi_library_the_error_says_so(monkeypatch, tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py/__init__.py").write_text("")
    (tmp_path / "mpi4py/MPI.py").write_text("raise RuntimeError('cannot load MPI library')")
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mpi4py"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="mpi4py cannot be used: cannot load MPI library"):
        ranks.world()


@pytest.mark.parametrize("comm", [0, "world", object()])
def test_what_is_no_communicator(comm):
    with pytest.raises(TypeError, match="comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, got"):
        ranks.of(comm)


@pytest.mark.parametrize(
    "timeout, error", [(0, ValueError), (-1, ValueError), (math.inf, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_a_wrong_timeout(timeout, error):
    with pytest.raises(error, match="timeout must be"):
        ranks.of(None, timeout=timeout)


def test_alone_has_the_whole_interface():
    """What several ranks do together is nothing much for one; each of its methods has the same parameters."""
    from inspect import signature

    from cvit.parallel.processes import Processes

    public = {name for name in dir(Processes) if not name.startswith("_")}
    assert public <= set(dir(ALONE))
    for name in public - {"first"}:
        if callable(getattr(Processes, name)):
            mine, other = signature(getattr(type(ALONE), name)), signature(getattr(Processes, name))
            assert list(mine.parameters.values()) == list(other.parameters.values()), name
    assert (ALONE.rank, ALONE.size, ALONE.local_rank, ALONE.local_size, ALONE.first) == (0, 1, 0, 1, True)
    value, array = {"a": [1, np.arange(3)]}, np.arange(3)
    assert ALONE.broadcast(value) is value and ALONE.allgather(array)[0] is array
    assert ALONE.any(1) is True and ALONE.any(False) is False
    ALONE.agree({"seed": 1})
    ALONE.barrier()
    ALONE.wait([], "nothing")
    with pytest.raises(KeyError), ALONE.guarded():
        raise KeyError
    assert ALONE.speaks()
    ALONE.end(2)
    ALONE.close()
    for call, name in ((ALONE.send, "to"), (ALONE.receive, "of")):
        with pytest.raises(ValueError, match=f"{name} must be another rank"):
            call(array, 1)
    threads = cvit.get_num_threads()
    assert re.match(rf"1 rank of {threads} thread(s|) .*on \d+ .*cores? of one machine", ALONE.share_cores())
    assert cvit.get_num_threads() == threads


# ----------------------------------------------------------------------------------------------------------------- cores


def place(cpus, quota=None, cgroup="a", machine="m", all=8):
    return {"machine": machine, "cpus": list(cpus), "all": all, "quota": quota, "cgroup": cgroup}


@pytest.mark.parametrize(
    "places, threads",
    [
        ([place(range(8))], [8]),
        ([place(range(8)), place(range(8))], [4, 4]),
        ([place(range(8))] * 3, [3, 3, 2]),
        ([place(range(2))] * 4, [1, 1, 1, 1]),
        ([place([0]), place([1])], [1, 1]),  # bound apart
        ([place(range(4)), place(range(4, 8)), place(range(4))], [2, 4, 2]),  # two on each socket but for one
        ([place(range(4)), place(range(2, 6)), place(range(5, 8))], [3, 3, 2]),  # by a detour
        ([place([0]), place(range(8))], [1, 4]),
        ([place(range(8), quota=3.5)] * 2, [2, 2]),  # one quota for both
        ([place(range(8), 2.0)] * 4, [1, 1, 1, 1]),
        ([place(range(8), 3.0, "a"), place(range(8), 2.0, "b")], [3, 2]),
        ([place(range(8), 3.0, "a"), place(range(8), None, "b")], [3, 4]),
        ([place(range(4), 4.0), place(range(4, 8), 4.0)], [2, 2]),  # bound apart, with a quota in common
    ],
)
def test_who_uses_how_many_cores(places, threads):
    assert cores.shares(places) == threads


@pytest.mark.parametrize(
    "places, threads, line",
    [
        ([place(range(2), all=2)] * 2, [1, 1], "2 ranks of 1 thread on 2 cores of one machine"),
        ([place([0]), place([1])], [1, 1], "2 ranks of 1 thread on 2 of 8 cores of one machine"),
        ([place(range(8))] * 3, [3, 3, 2], "3 ranks of 2 to 3 threads on 8 cores of one machine"),
        ([place(range(8))] * 2, [8, 8], "2 ranks of 8 threads, as set, on 8 cores of one machine"),
        ([place(range(8), 3.5)] * 2, [2, 2], "2 ranks of 2 threads on 4 of 8 cores of one machine"),
        (
            [place(range(8), machine=name) for name in "aabb"], [4, 4, 4, 4],
            "4 ranks of 4 threads on 16 cores of 2 machines",
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_it(places, threads, line):
    assert cores.line(places, threads) == line


def test_what_a_process_tells_of_its_place(monkeypatch):
    monkeypatch.setattr(runtime, "cgroup_cpus", lambda: 1.5)
    told = cores.own()
    assert told["cpus"] == sorted(os.sched_getaffinity(0)) and told["all"] == os.cpu_count()
    assert told["quota"] == 1.5 and told["machine"] and told["cgroup"]
    monkeypatch.setattr(runtime, "cgroup_cpus", lambda: math.inf)
    assert cores.own()["quota"] is None


@pytest.mark.skipif(not team.has_openmp(), reason="built without OpenMP")
def test_what_the_user_has_said_counts():
    code = "import cvit; from cvit.parallel import cores; {}; cores.use(1); {}; print(cvit.get_num_threads())"
    for before, after, omp, threads in (
        ("0", "0", None, 1),
        ("cvit.set_num_threads(3)", "0", None, 3),
        ("0", "cvit.set_num_threads(3)", None, 3),
        ("cvit.set_num_threads(3)", "cvit.set_num_threads(None)", None, 1),
        ("0", "0", "3", 3),
        ("0", "0", "none", 1),
    ):
        told = python(code.format(before, after), **({"OMP_NUM_THREADS": omp} if omp else {}))
        assert told.stdout.split() == [str(threads)], (before, after, omp, told.stderr)


# -------------------------------------------------------------------------------------------------------------- messages


def test_a_frame_holds_what_finds_room():
    for size in (0, 1, messages.FRAME - 50, messages.FRAME, 10**5):
        body = np.arange(size).astype(np.uint8)
        head, found, whole = messages.unframed(messages.framed({"for": "ä"}, body))
        assert head == {"for": "ä", "bytes": size} and found.size == size
        assert np.array_equal(found, body) if whole else size > messages.FRAME - 100
    with pytest.raises(ValueError, match="a message's head must have at most 510 bytes, got"):
        messages.framed({"for": 600 * "x"}, body)
    with pytest.raises(ValueError, match="a message's head must have at most 510 bytes, got 65535"):
        messages.unframed(np.full(messages.FRAME, 255, np.uint8))


def test_long_messages_are_cut(monkeypatch):
    monkeypatch.setattr(messages, "PIECE", 7)
    data = np.arange(20, dtype=np.uint8)
    assert [piece.size for piece in messages.pieces(data)] == [7, 7, 6]
    assert all(np.shares_memory(piece, data) for piece in messages.pieces(data))


@pytest.mark.parametrize(
    "value, told",
    [
        (object(), "must be an array of numbers or strings"),
        ({1: 2}, "must have strings as keys, got 1"),
        ([np.array([None])], "must be an array of numbers or strings, got dtype('O')"),
        (np.zeros(2, "f4,i4"), "must be an array of numbers or strings"),
        (b"bytes", "must be an array of numbers or strings"),
        (np.datetime64("2020-01-01"), "must be an array of numbers or strings"),
    ],
)
def test_nothing_is_pickled(value, told):
    with pytest.raises(TypeError, match=re.escape(told)):
        messages.taken_apart(value)


def test_a_message_makes_no_objects():
    text = np.frombuffer(b'{"array": "|O", "shape": [3]}', np.uint8)
    with pytest.raises(ValueError, match="arrays must hold numbers or strings, got object"):
        messages.put_together(text)


# --------------------------------------------------------------------------------------------------------- several ranks


@pytest.mark.parametrize("count", [2, 3, 4])
def test_ranks_meet(count):
    outputs = mpi_runs.succeeds(count, "meet.py")
    assert len(set(outputs)) == 1
    data, b, x, shapes, line = outputs[0].splitlines()
    others = {2: "rank 1 (host {h}) has", 3: "rank 1 (host {h}) and rank 2 (host {h}) have"}
    others[4] = "rank 1 (host {h}), rank 2 (host {h}) and rank 3 (host {h}) have"
    host = re.search(r"host ([^)]+)\)", data)[1]
    wanted = f'ranks differ in data: rank 0 (host {{h}}) has "/data/0", {others[count]} "/data/1"'
    assert data == wanted.format(h=host)
    assert b == f"ranks differ in b: rank 0 (host {{h}}) has nothing, {others[count]} 2".format(h=host)
    assert x.startswith(f"ranks differ in x: rank 0 (host {host}) has 0.0, rank 1 (host {host}) has 1.0")
    assert re.search(r"rank 0 .* has float64 of shape \(n, 3\), rank 1 .*float32 of shape \(n, 4\)", shapes)
    cpus = len(os.sched_getaffinity(0))
    if runtime.cgroup_cpus() == math.inf and team.has_openmp() and cpus % count == 0:
        each = cpus // count
        assert line.startswith(f"{count} ranks of {each} thread{'s' if each > 1 else ''} on {cpus} ")


def ended(count, how, timeout=30):
    """The run of fail.py: its end, the lines of each rank, and the seconds until the last one knew of it."""
    begin = time.monotonic()
    finished = mpi_runs.run(count, "fail.py", how, timeout)
    assert finished.status != 0 and time.monotonic() - begin < 25, str(finished)
    lines = [output.splitlines() for output in finished.outputs]
    assert not any("Traceback" in text for text in finished.errors), str(finished)
    return lines, max(float(re.match(r"after (\S+) s", each[-1])[1]) for each in lines if each), str(finished)


def test_a_rank_that_raises_ends_the_others():
    lines, seconds, report = ended(3, "raise")
    assert seconds < 5, report
    assert lines[2][0] == "ValueError: nothing" and "told None, speaks True" in lines[2][-1]
    for first, second in lines[:2]:
        assert re.match(r"RankError: rank 2 \(host .+\) failed: ValueError: nothing there ä+", first), report
        assert "told True, speaks False" in second


def test_ranks_that_fail_alike_speak_once():
    lines, _, report = ended(3, "all")
    assert [each[0] for each in lines] == ["ValueError: nothing there"] * 3
    assert [each[1].split()[-1] for each in lines] == ["True", "False", "False"], report


def test_a_rank_that_leaves_ends_the_others():
    lines, _, report = ended(2, "exit")
    assert re.match(r"RankError: rank 1 \(host .+\) failed: SystemExit: 3", lines[0][0]), report


def test_a_rank_that_is_killed_ends_the_run():
    finished = mpi_runs.run(2, "fail.py", "kill", 30, timeout=25)
    assert finished.status != 0


def test_a_rank_that_stands_still_is_named():
    lines, seconds, report = ended(3, "stop", timeout=1)
    assert seconds < 10, report
    assert lines[2] == []
    for rank, (first, second) in enumerate(lines[:2]):
        assert re.match(r"RankError: no word from rank 2 \(host .+\) for 1 s: rank 0 \(.+ waited for the gradient", first)
        assert f"speaks {rank == 0}" in second, report


def test_ranks_that_have_gone_different_ways():
    lines, _, report = ended(2, "apart")
    assert all(
        re.match(r"RankError: ranks have gone different ways: rank 1 .* waits for the checkpoint, rank 0", each[0])
        for each in lines
    ), report


def test_a_launcher_of_another_mpi_is_found_out():
    mpi_runs.launcher()
    told = python("from cvit.parallel import ranks; ranks.world()", PMI_SIZE="2", **mpi_runs.ENVIRONMENT)
    assert "RankError: the launcher has started 2 processes, but mpi4py's MPI (" in told.stderr
