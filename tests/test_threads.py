"""How many threads, by whose word; models in several Python threads and processes."""

import math
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest
import threadpoolctl
from checks import same_bits
from test_isa import python

import cvit
from cvit import ViT, ViTConfig
from cvit.engine import plan, runtime, team
from cvit.model.program import program_of

CONFIG = ViTConfig(image_size=8, patch_size=2, channels=1, width=48, depth=2, heads=4, hidden=96, classes=10)
openmp = pytest.mark.skipif(not team.has_openmp(), reason="built without OpenMP")


def batch(N=16, seed=0, config=CONFIG):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, config.channels, *config.image_size)).astype(np.float32)
    return x, rng.integers(config.classes, size=N)


def result(model, x, y):
    loss, grad = model.loss_and_grad(x, y)
    return loss, grad.copy(), model.forward(x)


# ------------------------------------------------------------------------------------------------------- the number


@openmp
def test_set_and_get():
    default = cvit.get_num_threads()
    assert default >= 1
    for count in (1, 2, 7, np.int64(3), 4.0):
        cvit.set_num_threads(count)
        assert cvit.get_num_threads() == count
    cvit.set_num_threads(None)
    assert cvit.get_num_threads() == default


@pytest.mark.parametrize(
    "count, error",
    [
        (0, ValueError),
        (-1, ValueError),
        (2.5, ValueError),
        ("2", TypeError),
        (True, TypeError),
        (2**31, ValueError),
        (1025, ValueError),
        (3 * 10**9, ValueError),
    ],
)
def test_a_wrong_number_changes_nothing(count, error):
    cvit.set_num_threads(2)
    before = cvit.get_num_threads()
    with pytest.raises(error, match="count must be"):
        cvit.set_num_threads(count)
    assert cvit.get_num_threads() == before


def test_the_default_is_what_the_process_may_use():
    told = python("import cvit; print(cvit.get_num_threads())")
    assert int(told.stdout) == (runtime.available_cpus() if team.has_openmp() else 1)


@openmp
@pytest.mark.parametrize("threads", [1, 3])
def test_omp_num_threads(threads):
    """It counts even beyond the cores, and the results are the same bits."""
    code = """if True:
        import cvit, numpy as np
        shape = dict(image_size=8, patch_size=2, channels=1, width=48, depth=2, heads=4, hidden=96, classes=10)
        model = cvit.ViT(cvit.ViTConfig(**shape))
        x = np.linspace(-1, 1, 16 * 64, dtype='f4').reshape(16, 1, 8, 8)
        loss, grad = model.loss_and_grad(x, np.arange(16) % 10)
        print(cvit.get_num_threads(), loss, grad.tobytes().hex()[:64], abs(grad).sum())
        """
    told = python(code, OMP_NUM_THREADS=str(threads)).stdout.split()
    assert told[0] == str(threads)
    assert told[1:] == python(code).stdout.split()[1:]


@openmp
@pytest.mark.parametrize("text", ["", " ", "0", "abc", "-3", "3.0", "4,", "1000000000"])
def test_an_omp_num_threads_that_says_nothing_is_none(text):
    told = python("import cvit; print(cvit.get_num_threads())", OMP_NUM_THREADS=text)
    assert int(told.stdout) == runtime.available_cpus()


@pytest.mark.parametrize(
    "text, number",
    [("3", 3), (" 3 ", 3), ("+3", 3), ("3,2", 3), ("3 , 2", 3), ("999999999", runtime.MAX_THREADS)]
    + [
        (text, None)
        for text in ("", " ", "0", "abc", "-3", "3,0", "3,x", "3,", ",3", "3.0", "0x3", "1e3", "2147483648")
    ],
)
def test_the_quota_counts_unless_omp_num_threads_is_a_number(monkeypatch, text, number):
    monkeypatch.setattr(runtime, "available_cpus", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert runtime._default_limit() == (number or 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert runtime._default_limit() == 1


@pytest.mark.parametrize(
    "name, text, given",
    [("GOMP_SPINCOUNT", "5k", None), ("GOMP_SPINCOUNT", "infinite", None), ("OMP_WAIT_POLICY", "Passive", None)]
    + [("GOMP_SPINCOUNT", text, "20000") for text in ("", " ", "many")]
    + [("OMP_WAIT_POLICY", text, "20000") for text in ("", "maybe")],
)
def test_how_long_idle_threads_spin(monkeypatch, name, text, given):
    for variable in runtime._SPINNING:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, text)
    before = dict(os.environ)
    with runtime._short_spinning():
        assert os.environ.get("GOMP_SPINCOUNT") == (given or before.get("GOMP_SPINCOUNT"))
    assert dict(os.environ) == before


@openmp
@pytest.mark.parametrize("variable", ["OMP_THREAD_LIMIT=2", "OMP_DYNAMIC=true", "OMP_MAX_ACTIVE_LEVELS=0"])
def test_openmp_may_give_fewer_threads(variable):
    """A limit that OpenMP keeps to itself: fewer threads than asked for come, and they do all the work."""
    code = """if True:
        import cvit, numpy as np
        shape = dict(image_size=8, patch_size=2, channels=1, width=48, depth=2, heads=4, hidden=96, classes=10)
        model = cvit.ViT(cvit.ViTConfig(**shape))
        cvit.set_num_threads(5)
        x = np.linspace(-1, 1, 16 * 64, dtype='f4').reshape(16, 1, 8, 8)
        loss, grad = model.loss_and_grad(x, np.arange(16) % 10)
        cvit.SGD(model).step(model.weights, grad, clip_norm=1)
        print(loss, model.forward(x).tobytes().hex()[:64], cvit.ops.gelu(x).sum())
        """
    name, value = variable.split("=")
    told = python(code, **{name: value})
    assert told.returncode == 0, told.stderr
    assert told.stdout == python(code).stdout


@openmp
def test_threadpoolctl_limits():
    """OpenMP's number, as threadpoolctl lowers it, is a limit also to what set_num_threads asked for."""
    default = cvit.get_num_threads()
    with threadpoolctl.threadpool_limits(1):
        assert cvit.get_num_threads() == 1
        cvit.set_num_threads(3)
        assert cvit.get_num_threads() == 1
    assert cvit.get_num_threads() == 3
    cvit.set_num_threads(None)
    assert cvit.get_num_threads() == default
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert cvit.get_num_threads() == default


# ---------------------------------------------------------------------------------------------------------- cgroups


@pytest.fixture
def cgroup(tmp_path):
    """A function that writes files under a root of its own, and returns the CPUs that are read from them."""

    def cpus(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "fs" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name.replace("_max", ".max").replace("cfs", "cpu.cfs")).write_text(text)
        return runtime.cgroup_cpus(str(tmp_path / "fs"), str(tmp_path / "own"))

    return cpus


def test_cgroup_version_2(cgroup):
    assert cgroup("0::/\n") == math.inf
    assert cgroup("0::/\n", cpu_max="max 100000\n") == math.inf
    assert cgroup("0::/\n", cpu_max="150000 100000\n") == 1.5


def test_cgroup_version_2_takes_the_tightest_on_the_way_up(cgroup):
    assert cgroup("0::/a/b\n", a__b__cpu_max="400000 100000", a__cpu_max="max 100000") == 4
    assert cgroup("0::/a/b\n", a__cpu_max="250000 100000") == 2.5
    assert cgroup("0::/a/b\n", cpu_max="100000 100000") == 1


def test_cgroup_version_1(cgroup):
    own = "5:cpuset:/\n4:cpu,cpuacct:/box\n0::/x\n"
    assert cgroup(own) == math.inf
    assert cgroup(own, cpu__box__cfs_quota_us="-1\n", cpu__box__cfs_period_us="100000\n") == math.inf
    assert cgroup(own, cpu__box__cfs_quota_us="300000\n", cpu__box__cfs_period_us="100000\n") == 3
    assert cgroup(own, cpu__cfs_quota_us="200000\n", cpu__cfs_period_us="100000\n") == 2


@pytest.mark.parametrize("text", ["", "max", "100000", "many few", "100000 0", "-5 100000"])
def test_cgroup_files_that_make_no_sense_are_no_limit(cgroup, text):
    assert cgroup("0::/\n", cpu_max=text) == math.inf


@pytest.mark.parametrize("own", ["nonsense", "0:/\n", "\n\n"])
def test_a_cgroup_list_that_makes_no_sense_is_no_limit(cgroup, own):
    assert cgroup(own) == math.inf


@pytest.mark.parametrize("quota, cpus", [(0.5, 1), (1.5, 2), (1.0, 1), (10_000, None), (math.inf, None)])
def test_available_cpus_round_the_quota_up(monkeypatch, quota, cpus):
    monkeypatch.setattr(runtime, "cgroup_cpus", lambda: quota)
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert runtime.available_cpus() == min(cpus or affinity, affinity)


# ---------------------------------------------------------------------------------------------------- Python threads


def run_together(functions):
    """Run each function in a thread of its own, started together; returns their results, or raises what one raised."""
    start, results = threading.Barrier(len(functions)), [None] * len(functions)

    def run(i, function):
        start.wait()
        try:
            results[i] = function()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a thread hangs"
    for item in results:
        if isinstance(item, BaseException):
            raise item
    return results


@pytest.mark.parametrize("threads", [1, 3])
def test_two_models_in_two_python_threads(threads):
    cvit.set_num_threads(threads)
    models = [ViT(CONFIG, seed=seed) for seed in (1, 2)]
    data = [batch(16, 1), batch(7, 2)]
    expected = [result(model, *d) for model, d in zip(models, data)]

    def many(i):
        return [result(models[i], *data[i]) for _ in range(30)]

    for results, wanted in zip(run_together([lambda: many(0), lambda: many(1)]), expected):
        assert all(same_bits(r, wanted) for r in results)


def test_one_model_in_two_python_threads():
    """Calls take turns; each gets its own result."""
    model = ViT(CONFIG, seed=1)
    model.weights += np.float32(0.01)
    data = [batch(4, 1)[0], batch(4, 2)[0]]
    expected = [model.forward(x) for x in data]
    results = run_together([lambda x=x: [model.forward(x) for _ in range(50)] for x in data])
    for logits, wanted in zip(results, expected):
        assert all(same_bits(one, wanted) for one in logits)


@pytest.mark.parametrize("threads", [1, 3])
def test_two_python_threads_train_one_model(threads):
    """Each gets its own loss, gradient and logits, and those of a call stay as they are."""
    cvit.set_num_threads(threads)
    model = ViT(CONFIG, seed=1)
    model.weights += 0.1 * np.random.default_rng(0).standard_normal(model.weights.size).astype(np.float32)
    data = [batch(5, 1), batch(5, 2), batch(3, 3)]

    def call(x, y):
        loss, grad = model.loss_and_grad(x, y)
        return loss, grad, model.logits

    def copied(result):
        return result[0], result[1].copy(), result[2].copy()

    expected = [copied(call(*d)) for d in data]
    assert len({e[0] for e in expected}) == 3

    def many(d, wanted):
        last = None
        for _ in range(60):
            result = call(*d)
            assert same_bits(result, wanted) and (last is None or same_bits(last, wanted))
            last = result
        return True

    assert all(run_together([lambda d=d, e=e: many(d, e) for d, e in zip(data, expected)]))
    assert same_bits(model.logits, expected[2][2])  # this thread's own


def test_weights_may_be_assigned_and_frozen_beside_calls():
    """A call sees one state or the other, never half of one."""
    x, _ = batch(4, 1)
    vectors = [ViT(CONFIG, seed=seed).weights + np.float32(0.01) for seed in (1, 2)]
    expected = [ViT(CONFIG, vector).forward(x) for vector in vectors]
    model, done = ViT(CONFIG, vectors[0]), threading.Event()

    def change():
        try:
            for i in range(60):
                model.weights = vectors[i % 2]
                model.freeze().unfreeze()
        finally:
            done.set()

    def look():
        while not done.is_set():
            logits = model.forward(x)
            assert any(same_bits(logits, wanted) for wanted in expected)

    run_together([change, look, look])
    assert model.weights is vectors[1]


def test_ops_in_two_python_threads(rng):
    x, w = rng.standard_normal((2, 300, 60))
    expected = cvit.ops.linear(x, w.T.copy()), cvit.ops.gelu(x)
    together = run_together(
        [lambda: [cvit.ops.linear(x, w.T.copy()) for _ in range(30)], lambda: [cvit.ops.gelu(x) for _ in range(30)]]
    )
    for results, wanted in zip(together, expected):
        assert all(same_bits(one, wanted) for one in results)


@pytest.mark.parametrize("mode", ["train", "forward", "update"])
def test_other_python_threads_go_on_during_a_call(mode):
    """The GIL is released: while one thread computes, another one counts milliseconds."""
    config = ViTConfig(image_size=64, patch_size=8, width=192, depth=4, heads=3, hidden=768, classes=10)
    model = ViT(config)
    x, y = batch(32, config=config)
    vector = np.ones(20_000_000, np.float32)
    call = {
        "train": lambda: model.loss_and_grad(x, y),
        "forward": lambda: model.forward(x),
        "update": lambda: cvit.engine.update.sum_of_squares(vector, cvit.engine.update.run_of(0, vector.size)),
    }[mode]
    call()
    inside, done = threading.Event(), threading.Event()

    def compute():
        inside.set()
        call()
        done.set()

    longest = 0.0
    for _ in range(40):  # the switch may fall before the call, or another program hold the core: several tries
        inside.clear(), done.clear()
        thread = threading.Thread(target=compute)
        thread.start()
        inside.wait()
        start, ticks = time.perf_counter(), 0
        while not done.is_set():
            ticks += 1
            time.sleep(0.0005)
        longest = time.perf_counter() - start
        thread.join()
        if ticks > 3:
            return
    pytest.fail(f"{ticks} ticks of half a millisecond in {longest * 1e3:.1f} ms")


@openmp
def test_a_pass_too_small_to_share_runs_on_one_thread(monkeypatch):
    """By its FLOPs, as they are for everyone: the other tests share out the smallest passes, too."""
    monkeypatch.setattr(plan, "THREAD_FLOPS", 1.2e7)
    config = ViTConfig(image_size=8, patch_size=2, channels=1, width=64, depth=4, heads=4, hidden=128, classes=10)
    cvit.set_num_threads(4)
    threads = [plan.Plan(program_of(config), N, np.float32, "infer", dry=True).threads() for N in (1, 2, 3, 32)]
    assert threads == [1, 1, 2, 4]


# ------------------------------------------------------------------------------------------------------------- fork


def in_child(function):
    """`function()` in a forked child, through a pipe; fails if it hangs."""
    parent, child = multiprocessing.Pipe()

    def run():
        try:
            child.send(function())
        except BaseException as error:
            child.send(error)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    try:
        assert parent.poll(30), "the child hangs"
        value = parent.recv()
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
    if isinstance(value, BaseException):
        raise value
    return value


fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kept", [True, False], ids=["the same model", "a model of its own"])
def test_a_forked_child_computes_the_same(kept):
    """After the parent used its threads, which the child does not have."""
    cvit.set_num_threads(3)
    model = ViT(CONFIG, seed=1)
    x, y = batch()
    expected = result(model, x, y)
    cvit.ops.gelu(x)

    def work():
        mine = model if kept else ViT(CONFIG, seed=1)
        cvit.ops.gelu(x), cvit.ops.linear(x, np.ones((8, 3), np.float32))
        answer = result(mine, x, y)
        cvit.AdamW(mine).step(mine.weights, answer[1].copy(), clip_norm=1.0)
        return cvit.get_num_threads(), answer

    threads, answer = in_child(work)
    assert threads == 1 and same_bits(answer, expected)
    assert same_bits(in_child(work)[1], expected)  # and so does a second one
    assert same_bits(result(model, x, y), expected)  # and the parent goes on


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_of_a_child_computes_the_same():
    model = ViT(CONFIG, seed=1)
    x, y = batch()
    expected = result(model, x, y)

    def grandchild():
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, b"same" if same_bits(result(model, x, y), expected) else b"different")
            os._exit(0)
        os.waitpid(pid, 0)
        return os.read(read, 20)

    assert in_child(grandchild) == b"same"


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("call", ["forward", "loss_and_grad", "freeze"])
def test_a_fork_while_another_thread_is_inside_a_call(call):
    """The child has that thread's lock, but not the thread."""
    model = ViT(CONFIG, seed=1)
    x, y = batch()
    expected = result(model, x, y)
    model._lock.acquire()  # as a call in another thread holds it
    try:
        work = {
            "forward": lambda: model.forward(x),
            "loss_and_grad": lambda: result(model, x, y)[:2],
            "freeze": lambda: model.freeze().forward(x),
        }[call]
        answer = in_child(work)
    finally:
        model._lock.release()
    assert same_bits(answer, expected[:2] if call == "loss_and_grad" else expected[2])
    assert same_bits(result(model, x, y), expected)


@fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_in_the_middle_of_calls():
    model = ViT(CONFIG, seed=1)
    x, y = batch(32)
    expected = result(model, x, y)
    stop = threading.Event()

    def train():
        while not stop.is_set():
            model.loss_and_grad(x, y)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    try:
        for _ in range(10):
            assert same_bits(in_child(lambda: result(model, x, y)), expected)
    finally:
        stop.set()
        thread.join()


# --------------------------------------------------------------------------------------------------- out of memory


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits the address space")
def test_out_of_memory_says_what_was_asked_for():
    """And the model goes on with a smaller batch."""
    code = """if True:
        import cvit, numpy as np, resource
        config = cvit.ViTConfig(image_size=32, patch_size=4, channels=3, width=64, depth=4, heads=4, classes=10)
        model = cvit.ViT(config)
        x = np.ones((3000, 3, 32, 32), np.float32)
        y = np.zeros(3000, int)
        model.loss_and_grad(x[:4], y[:4])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), hard))
        try:
            model.loss_and_grad(x, y)
        except MemoryError as error:
            print(error)
        print(model.loss_and_grad(x[:4], y[:4])[0])
        """
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("reads /proc")
    told = python(code)
    assert told.returncode == 0, told.stderr
    message, loss = told.stdout.splitlines()
    assert message.startswith("no room for ") and " bytes, " in message and " GB: " in message
    assert float(loss) == pytest.approx(math.log(10))
