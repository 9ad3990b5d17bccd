"""Ranks: what launchers say, what ranks tell each other, and how a run ends when one of them has failed."""

import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import mpi_runs
import numpy as np
import pytest
from test_isa import python

import cvit.cli
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
    for name in (*ranks.SIZES, "PMIX_RANK", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------------------------------------- one process alone


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
    [
        {}, {"SLURM_NTASKS": "4"}, {"PMIX_RANK": "0"}, {"PMI_SIZE": ""}, {"PMI_SIZE": "two"}, {"PMI_SIZE": "-3"},
        {"SLURM_NTASKS": "4", "OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
    ],
)  # fmt: skip
def test_what_is_no_launcher_of_several(monkeypatch, environment):
    """Slurm's number of tasks also stands in the environment of a job's script, which is one process, and of what
    mpiexec starts there."""
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert not ranks.launched() and ranks.world() is ALONE


@pytest.mark.parametrize("joined", [{}, {"PMIX_RANK": "0"}, {"OMPI_COMM_WORLD_SIZE": "1"}])
def test_processes_of_srun_without_mpi_are_strangers(monkeypatch, capsys, joined):
    """Of which the first says so: the runs may be meant to be apart."""
    for name, text in {"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0", **joined}.items():
        monkeypatch.setenv(name, text)
    if "PMIX_RANK" not in joined:
        assert ranks.world() is ALONE
    assert ranks.strangers() == (1 if joined else 3)
    for place in ("0", "1"):
        monkeypatch.setenv("SLURM_PROCID", place)
        assert cvit.cli.main(["embed", "absent.safetensors", "absent", "--out", "f.npy"]) == 2
        said = capsys.readouterr().err
        assert ("srun --mpi=pmix" in said) == (not joined and place == "0")
        assert said.splitlines()[-1].startswith("cvit: error: ")


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
    "timeout, error",
    [(0, ValueError), (-1, ValueError), (math.inf, ValueError), (math.nan, ValueError), ("1", TypeError)],
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


# ---------------------------------------------------------------------------------------------------------------- cores


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
def test_what_the_user_has_said_counts(monkeypatch):
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "no number")
        cvit.set_num_threads(3)
        cores.use(1)
        assert cvit.get_num_threads() == 3, "what was set before"
        cvit.set_num_threads(None)
        assert cvit.get_num_threads() == 1
        cvit.set_num_threads(2)
        assert cvit.get_num_threads() == 2, "what is set afterwards"
    finally:
        team.set_cpu_limit(runtime._default_limit())
    cvit.set_num_threads(None)
    default = cvit.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    cores.use(1)
    assert cvit.get_num_threads() == default


# ------------------------------------------------------------------------------------------------------------- messages


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


# -------------------------------------------------------------------------------------------------------- several ranks


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


ENDS = {  # how the last rank fails: ranks, and seconds that they wait
    "raise": (3, 60), "all": (3, 60), "exit": (2, 60), "kill": (2, 60), "apart": (2, 60), "stop": (3, 3),
    "stop and leave": (2, 3), "pause": (2, 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended():
    """Of each run of fail.py its status, each rank's lines, and all of it; they run at the same time, mostly asleep."""
    mpi_runs.launcher()
    with ThreadPoolExecutor(4) as pool:
        runs = {
            how: pool.submit(mpi_runs.run, count, "fail.py", how, timeout, timeout=40)
            for how, (count, timeout) in ENDS.items()
        }
    return {
        how: (run.result().status, *map(str.splitlines, run.result().outputs), run.result())
        for how, run in runs.items()
    }


def known_after(*lines):
    """The seconds until the last of these ranks knew of the failure."""
    return max(float(re.match(r"after (\S+) s", each[-1])[1]) for each in lines)


def test_a_rank_that_raises_ends_the_others(ended):
    status, first, second, last, run = ended["raise"]
    assert status == 7 and known_after(first, second) < 10, run
    assert last[0] == "ValueError: nothing" and "told None, speaks True" in last[-1], run
    for told, how in (first, second):
        assert re.match(r"RankError: rank 2 \(host .+\) failed: ValueError: nothing there ä+…", told), run
        assert "told True, speaks False" in how


def test_ranks_that_fail_alike_each_say_so_and_one_speaks(ended):
    status, *lines, run = ended["all"]
    assert status == 7 and [each[0] for each in lines] == ["ValueError: nothing there"] * 3, run
    assert [each[1].split()[-1] for each in lines] == ["True", "False", "False"], run


def test_a_rank_that_leaves_ends_the_others(ended):
    status, first, _, run = ended["exit"]
    assert status == 7 and re.match(r"RankError: rank 1 \(host .+\) failed: SystemExit: 3", first[0]), run


def test_a_rank_that_is_killed_ends_the_run(ended):
    status, _, last, run = ended["kill"]
    assert status != 0 and last == [], run


def test_where_mpi_outlives_a_rank_the_others_end_with_its_error():
    """Open MPI without its default, which ends all processes: its calls fail, those that tell of a failure too."""
    about = subprocess.run([mpi_runs.launcher(), "--version"], capture_output=True, text=True, check=True).stdout
    if not re.search(r"Open MPI\) ([5-9]|\d\d)\.", about):
        pytest.skip("needs Open MPI 5 or later")
    run = mpi_runs.run(3, "fail.py", "kill", "60", timeout=30, how=["--with-ft", "ulfm"])
    for rank in (0, 1):
        said = run.outputs[rank].splitlines()
        assert said and said[0].startswith("RankError: MPI failed") and "MPI_ERR_PROC_FAILED" in said[0], run
        assert "Traceback" not in run.errors[rank], run


def test_a_rank_that_stands_still_is_named(ended):
    status, first, second, last, run = ended["stop"]
    assert status != 0 and last == [], run  # MPICH's mpiexec tells by what signal it has ended that rank
    for told, _ in (first, second):
        wanted = r"RankError: no word from rank 2 \(host .+\) for 3 s: rank . \(.+\) waited for the gradient"
        assert re.match(wanted, told), run
    assert "told False, speaks True" in first[1], run


def test_a_program_that_ends_by_itself_does_not_wait_for_a_rank_that_stands_still(ended):
    status, first, _, run = ended["stop and leave"]
    assert status == 1 and first[0].startswith("RankError: no word from rank 1"), run
    assert "RankError: no word from rank 1" in run.errors[0], run


def test_a_run_that_was_stopped_as_a_whole_goes_on(ended):
    status, *lines, run = ended["pause"]
    assert status == 0 and lines == [["all are here again"]] * 2, run


def test_ranks_that_have_gone_different_ways(ended):
    status, *lines, run = ended["apart"]
    wanted = (
        r"RankError: ranks have gone different ways: rank 1 .* waits for the checkpoint, rank 0 .* for the gradient"
    )
    assert status == 7 and all(re.match(wanted, each[0]) for each in lines), run


def test_a_launcher_of_another_mpi_is_found_out():
    mpi_runs.launcher()
    told = python("from cvit.parallel import ranks; ranks.world()", PMI_SIZE="2", **mpi_runs.ENVIRONMENT)
    assert "RankError: the launcher has started 2 processes, but mpi4py's MPI (" in told.stderr
