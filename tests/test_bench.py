"""`cvit bench`: workers that agree, are stopped when idle and fail clearly; sections, tables and the JSON file."""

import importlib.util
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import reference

from cvit import cli
from cvit.bench import cases, kernels, lineup, machine, peers, report
from cvit.bench.sections import BusyLoops
from cvit.engine import team
from cvit.model.layout import Layout

BENCH = Path(__file__).parent.parent / "bench"
TINY = {"image_size": (8, 12), "width": 16, "heads": 2, "hidden": 24, "depth": 2, "classes": 5, "batch": 3}
TINY_FLAGS = [
    "--image", "8x12", "--width", "16", "--heads", "2", "--hidden", "24", "--depth", "2", "--classes", "5", "--batch",
    "3",
]  # fmt: skip
PACKAGES = {
    "torch": ["torch"], "torch-bf16": ["torch"], "jax": ["jax"], "onnxruntime": ["onnx", "onnxruntime"],
    "openvino": ["openvino"], "openvino-bf16": ["openvino"],
}  # fmt: skip


@pytest.fixture(scope="module")
def case():
    return cases.Case.named("digits", **TINY)


@pytest.fixture(scope="module")
def file(case, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "case.npz"
    case.write_arrays(path)
    return path


def arrays(file):
    with np.load(file) as archive:
        found = dict(archive)
    return found.pop("images"), found.pop("labels"), found


@pytest.fixture(scope="module")
def expected(case):
    return lineup.reference(case, True, 1)


def run(capsys, *arguments):
    """Exit status and text of `cvit bench` with a tiny model and short rounds."""
    status = cli.main(["bench", "--quick", "--seconds", "0.001", "--cases", "digits", *TINY_FLAGS, *arguments])
    return status, capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- the workers


def test_the_reference_worker_computes_what_the_tests_reference_computes(case, file, expected):
    images, labels, weights = arrays(file)
    logits, _, _ = reference.forward(case.config, weights, images)
    np.testing.assert_allclose(expected["logits"], logits, rtol=1e-4, atol=1e-5)
    layout = Layout.of(case.config)
    loss, grad = reference.loss_and_grad(case.config, layout.pack(weights), images, labels)
    assert expected["loss"] == pytest.approx(loss, rel=1e-5)
    norms = {name: np.linalg.norm(view) for name, view in layout.views(grad).items()}
    assert expected["norms"] == pytest.approx(norms, rel=1e-4, abs=1e-5)
    second, _ = reference.loss_and_grad(case.config, layout.pack(weights) - lineup.LEARNING_RATE * grad, images, labels)
    assert expected["losses"] == pytest.approx([loss, second], rel=1e-5)


def need(name):
    for package in PACKAGES.get(name, []):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.mark.parametrize("name", ["cvit", *PACKAGES])
def test_workers_agree_with_the_reference_and_time_steps(name, case, file, expected):
    need(name)
    with peers.Peer(name, threads=1) as peer:
        lineup.load(peer, case, file, peer.tasks)
        train = "train" in peer.tasks
        found = peer.ask("check", logits=True, gradients=train, steps=2 * train)
        error = lineup.compare(name, found, expected, lineup.TOLERANCES[peer.precision])
        # What claims to be bfloat16 has its errors, and a float32 peer has not.
        assert (error > 2e-4) == (peer.precision == "bf16")
        assert peer.precision == "bf16" or not name.endswith("-bf16") or name.startswith("openvino")
        for task in peer.tasks:
            times = peer.ask("steps", task=task, count=3, warmup=1)["times"]
            assert len(times) == 3 and min(times) > 0
        memory = peer.ask("memory")
        assert 0 < memory["imported"] <= memory["peak"]


def test_workers_start_where_python_is_told_not_to_look_beside_a_script(monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with peers.Peer("numpy", threads=1) as peer, BusyLoops(threads=1):
        assert peer.tasks == ["train", "forward"]


@pytest.mark.parametrize("name", ["cvit", "torch", "jax"])
def test_workers_train_with_adamw_alike(name, case, file, expected):
    need(name)
    wanted = lineup.reference(case, True, 1, "adamw")
    assert wanted["loss"] == expected["loss"] and wanted["losses"][1] < expected["losses"][1]
    with peers.Peer(name, threads=1) as peer:
        lineup.load(peer, case, file, peer.tasks, "adamw")
        lineup.compare(name, peer.ask("check", logits=False, gradients=True, steps=2), wanted)


def test_every_tensor_of_the_arrays_matters(case, file):
    _, _, weights = arrays(file)
    assert all(np.abs(array).min() > 0 for array in weights.values())
    assert {name: array.shape for name, array in weights.items()} == {
        name: entry.shape for name, entry in Layout.of(case.config).entries.items()
    }


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_an_idle_worker_is_stopped_and_ends_with_its_block(case, file):
    with peers.Peer("numpy", threads=1) as peer:
        lineup.load(peer, case, file, peer.tasks)
        pid = peer._process.pid
        for _ in range(200):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T":
                break
            time.sleep(0.01)
        assert state == "T"
    assert not os.path.exists(f"/proc/{pid}")


def test_a_stopped_worker_dies_with_its_parent(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("Linux only")
    code = (
        "import os; from cvit.bench.peers import Peer\n"
        "print(Peer('numpy', 1)._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    pid = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    pytest.fail(f"worker {pid} is still there, state {state}")


def fake_worker(monkeypatch, tmp_path, body):
    """Make the worker "torch" one whose `setup` has this body."""
    script = tmp_path / "fake_worker.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(peers.HERE)!r})\n"
        "from serve import Worker, serve\n"
        "class Fake(Worker):\n"
        "    def setup(self, threads, variant):\n"
        f"        {body}\n"
        "serve(Fake())\n"
    )
    monkeypatch.setitem(peers.WORKERS, "torch", (str(script), ""))


def test_what_goes_wrong_in_a_worker_is_told(monkeypatch, tmp_path, case):
    told = r"numpy: FileNotFoundError: .*nothing.npz' \(serve.py, line \d+\)"
    with peers.Peer("numpy", threads=1) as peer, pytest.raises(peers.WorkerError, match=told):
        lineup.load(peer, case, tmp_path / "nothing.npz", peer.tasks)
    with pytest.raises(peers.WorkerError, match="torch: cannot run /no/such/python: No such file"):
        peers.Peer("torch", 1, "/no/such/python")
    with pytest.raises(ValueError, match="peer must be one of cvit, numpy, .* got 'theano'"):
        peers.Peer("theano", 1)
    fake_worker(monkeypatch, tmp_path, "import no_such_package")
    with pytest.raises(peers.NotInstalled, match="torch: no package no_such_package"):
        peers.Peer("torch", 1)
    fake_worker(monkeypatch, tmp_path, "sys.exit('out of luck')")
    with pytest.raises(peers.WorkerError, match="torch: worker ended with status 1\nout of luck"):
        peers.Peer("torch", 1)


def test_a_worker_may_print(monkeypatch, tmp_path):
    fake_worker(monkeypatch, tmp_path, "print('hello'); import os; os.system('echo hello'); return '1.0'")
    with peers.Peer("torch", 1) as peer:
        assert peer.version == "1.0"


# --------------------------------------------------------------------------------------------------- the agreement


def test_agreement_is_within_rounding(expected):
    lineup.compare("x", expected, expected)
    lineup.compare("x", {"logits": expected["logits"]}, expected)
    logits = (np.array(expected["logits"]) * (1 + 1e-6)).tolist()
    lineup.compare("x", {**expected, "logits": logits, "loss": expected["loss"] * (1 - 1e-6)}, expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: {"logits": (np.array(e["logits"]) * 1.002).tolist()}, "logits differ from NumPy's by 2.0e-03"),
        (lambda e: {"logits": (np.array(e["logits"]) * math.nan).tolist()}, "logits differ"),
        (lambda e: {"logits": e["logits"][:-1]}, "logits differ from NumPy's by inf"),
        (lambda e: {"loss": e["loss"] * 1.001}, "loss differ"),
        (lambda e: {"losses": [e["losses"][0]] * 2}, "losses of the first steps differ"),  # weights never updated
        (lambda e: {"norms": {**e["norms"], "norm.bias": 0.0}}, "the gradients of norm.bias differ"),
        (lambda e: {"norms": {"head.bias": e["norms"]["head.bias"]}}, "gradients of .*'cls_token'.* on one side only"),
    ],
)
def test_what_differs_is_named(expected, change, message):
    with pytest.raises(lineup.Disagreement, match=f"x: {message}"):
        lineup.compare("x", {**expected, **change(expected)}, expected)


def test_a_peer_that_disagrees_is_not_timed(capsys, monkeypatch):
    compare = lineup.compare
    spoil = lambda name, found, *others: compare(
        name, found if name == "cvit" else {**found, "logits": [[0.0]]}, *others
    )
    monkeypatch.setattr(lineup, "compare", spoil)
    status, text = run(capsys, "--vs", "numpy", "--tasks", "forward")
    assert status == 1
    assert "FAILED numpy: logits differ" in text
    assert [line.split()[2] for line in text.splitlines() if line.startswith("digits*")] == ["cvit"]


def test_if_cvit_disagrees_nothing_is_timed(capsys, monkeypatch):
    def disagree(name, *others):
        raise lineup.Disagreement(f"{name}: logits differ")

    monkeypatch.setattr(lineup, "compare", disagree)
    status, text = run(capsys)
    assert status == 1 and "FAILED digits*: cvit: logits differ" in text and "GFLOP/s  " not in text


# ----------------------------------------------------------------------------------------------------- the kernels


def test_kernels_are_checked_then_timed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "LARGEST", 1)
    path = tmp_path / "out.json"
    status, text = run(capsys, "--kernels", "--threads", "1", "--json", str(path))
    assert status == 0, text
    entries = json.loads(path.read_text())["kernels"]
    kinds = {"gemm", "attention", "layernorm", "gelu"}
    kinds |= {f"{kind} backward" for kind in kinds} | {"cross-entropy", "sgd", "adamw"}
    assert {entry["kind"] for entry in entries} == kinds
    for entry in entries:
        assert entry["seconds"] > 0 and entry["error"] < 1e-5 and entry["share"] > 0


def test_memory_bound_kernels_outgrow_the_cache(case):
    for kernel in kernels.kernels_of(case, least_bytes=1e6):
        if "gemm" not in kernel.kind and "attention" not in kernel.kind:
            assert kernel.bytes >= 1e6


def test_a_wrong_kernel_is_reported_and_not_timed(capsys, monkeypatch):
    from cvit.ops import _kernels as _ops

    class Broken:
        def __getattr__(self, name):
            return getattr(_ops, name)

        def activation(self, kind, x, value, y):
            y[:] = x

    monkeypatch.setattr(kernels, "LARGEST", 1)
    monkeypatch.setattr(kernels, "_ops", Broken())
    status, text = run(capsys, "--kernels", "--threads", "1")
    assert status == 1
    assert text.count("FAILED") == 1 and "FAILED digits*: gelu 75x24: differs from NumPy's by" in text
    assert "gelu backward" in text


# ----------------------------------------------------------------------------------------------------- the command


def test_cases_against_a_peer(capsys, tmp_path):
    path = tmp_path / "out.json"
    arguments = ("--vs", "numpy", "--peer-python", sys.executable, "--threads", "1", "--json", str(path))
    status, text = run(capsys, *arguments)
    assert status == 0
    for label in ("CPU", "ISA", "threads", "peak", "bandwidth"):
        assert f"\n{label} " in f"\n{text}"
    rows = [line.split() for line in text.splitlines() if line.startswith("digits*")]
    timed = [["digits*", task, who] for task in cases.TASKS for who in ("cvit", "numpy")]
    assert [row[:3] for row in rows[:4]] == timed
    assert [(row[1], row[-1]) for row in rows[4:]] == [("train", "numpy"), ("forward", "numpy")]  # the fastest peer
    data = json.loads(path.read_text())
    assert os.listdir(tmp_path) == ["out.json"]
    assert data["machine"]["threads"] == 1 and data["peak"]["1"] > 0 and data["bandwidth"]["1"] > 0
    assert data["command"].startswith("cvit bench --cases digits ")
    assert str(tmp_path) not in path.read_text() and sys.executable not in path.read_text()
    for entry in data["cases"]:
        assert len(entry["rounds"]) == 2
        assert entry["seconds"] == pytest.approx(np.median(entry["rounds"]))
        assert entry["images_per_s"] == pytest.approx(3 / entry["seconds"])
        assert entry["share"] == pytest.approx(entry["flops"] / entry["seconds"] / data["peak"]["1"], rel=0.5)
        assert (entry["ratio"] is None) == (entry["who"] == "cvit")
    train, forward = (next(e["flops"] for e in data["cases"] if e["task"] == task) for task in ("train", "forward"))
    assert train == 3 * forward


@pytest.mark.parametrize(
    "section, key, fields",
    [
        ("latency", "latency", {"p50", "p99", "share"}),
        ("scaling", "scaling", {"speed_up", "share"}),
        ("busy", "busy", {"quiet", "busy", "slow_down"}),
        ("memory", "memory", {"peak", "imported", "fixed", "activations", "planned"}),
        ("overhead", "overhead", {"p10", "p50", "p90", "threads"}),
    ],
)
def test_sections(capsys, tmp_path, section, key, fields):
    path = tmp_path / "out.json"
    status, text = run(capsys, f"--{section}", "--threads", "2", "--json", str(path))
    assert status == 0, text
    entries = json.loads(path.read_text())[key]
    assert entries and all(fields <= entry.keys() for entry in entries)
    if section == "memory":
        batch = TINY["batch"] * (4 * 8 * 12 + 8)
        assert entries[0]["fixed"] == 16 * Layout.of(cases.Case.named("digits", **TINY).config).size + batch


def test_long_sequences(capsys, tmp_path, monkeypatch):
    from cvit.bench import sections

    monkeypatch.setattr(sections, "LONG_SIZES", (8, 16))
    path = tmp_path / "out.json"
    status, _ = run(capsys, "--long", "--json", str(path))
    assert status == 0
    entries = json.loads(path.read_text())["long"]
    assert [(entry["pixels"], entry["tokens"], entry["task"]) for entry in entries] == [
        (8, 17, "train"), (8, 17, "forward"), (16, 65, "train"), (16, 65, "forward"),
    ]  # fmt: skip
    assert all(entry["planned"] > 0 for entry in entries)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--cases", "vit"], "choose from digits,cifar-s,ti16,s16,b16, got 'vit'"),
        (["--vs", "torch,theano"], "choose from numpy,torch,"),
        (["--image", "224x"], "must be a size like 224 or 224x160"),
        (["--patch", "5"], "patch_size must divide the image size"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--precision", "f16"], "argument --precision: invalid choice: 'f16'"),
        (["--kernels", "--precision", "bf16"], "--kernels measures float32 alone, got --precision bf16"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--json", "no/such/folder/x.json"], "--json: no/such/folder/x.json: No such file or directory"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, arguments, message):
    try:
        status = cli.main(["bench", *arguments])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert captured.err.startswith("cvit: error: ") and message in captured.err and captured.err.count("\n") == 1


def test_the_five_cases_are_those_of_the_design():
    assert {name: cases.Case.named(name).flops("train") / 1e9 for name in cases.CASES} == pytest.approx(
        {"digits": 1.83, "cifar-s": 48.1, "ti16": 60.2, "s16": 220.7, "b16": 421.5}, rel=0.01
    )


# --------------------------------------------------------------------------------------------- machine and output


def test_cpu_lists():
    assert machine._parse_list("0-2,8\n") == [0, 1, 2, 8]
    assert sorted(machine.usable_cpus()) == sorted(os.sched_getaffinity(0))
    assert machine.pick_cpus(len(machine.usable_cpus())) == []
    if len(machine.usable_cpus()) > 1:
        assert machine.pick_cpus(1) == machine.usable_cpus()[:1]


def test_numbers_are_short():
    seconds = (1.2345, 0.012345, 0.0012345, 0.00001234)
    assert [report.milliseconds(s) for s in seconds] == ["1234", "12.3", "1.23", "0.0123"]
    assert (report.percent(0.804), report.times(2.306), report.times(None)) == ("80 %", "2.31x", "")
    assert (report.megabytes(12_345_678), report.megabytes(1_234_567_890)) == ("12.3", "1235")


def test_tables_are_aligned(capsys):
    table = report.Report().table("Title", ("name", -6), ("ms", 5))
    table.gap()
    table.row("a", "1.5")
    table.gap()
    table.row("b", None)
    assert capsys.readouterr().out == "\nTitle\nname       ms\na         1.5\n\nb\n"


def script(name, *arguments):
    return subprocess.run([sys.executable, BENCH / name, *map(str, arguments)], capture_output=True, text=True)


def entry(case, task, who, seconds, ratio, flops=1e9):
    fields = {"case": case, "batch": 8, "task": task, "who": who, "version": "1", "threads": 2, "flops": flops}
    return {**fields, "seconds": seconds, "flops_per_s": flops / seconds, "images_per_s": 8 / seconds, "ratio": ratio}


@pytest.fixture
def results(tmp_path):
    """A benchmark's JSON as `cvit bench --vs torch,openvino` would write it."""
    path = tmp_path / "results.json"
    data = {
        "machine": {"cpu": "A CPU", "threads": 2, "isa": "avx2", "cvit": "0.1"},
        "peak": {"2": 2e11}, "bandwidth": {"2": 2e10}, "command": "cvit bench --vs torch,openvino",
        "cases": [
            entry("ti16", "train", "cvit", 0.01, None), entry("ti16", "train", "torch", 0.023, 2.3),
            entry("ti16", "forward", "cvit", 0.0101, None), entry("ti16", "forward", "torch", 0.03, 3.0),
            entry("ti16", "forward", "openvino", 0.011, 1.09),
        ],
        "kernels": [{"kind": "gemm", "flops": 1e9, "bytes": 1e7, "flops_per_s": 1.5e11}],
    }  # fmt: skip
    path.write_text(json.dumps(data))
    return path


def test_readme_table_replaces_what_stands_between_its_markers(results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n")
    for _ in range(2):
        assert script("readme_table.py", results, "--readme", readme).returncode == 0
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and "old" not in lines
    assert "| ti16, batch 8 | 10.0 ms | 800 | 50% | 2.30× | 10.1 ms | 792 | 50% | 1.09× (OpenVINO) |" in lines
    assert any("A CPU, 2 threads, avx2" in line and "PyTorch 1, OpenVINO 1" in line for line in lines)
    again = tmp_path / "again.json"
    again.write_text(results.read_text().replace("1.09", "1.23"))
    assert script("readme_table.py", results, again, "--readme", readme).returncode == 0
    row = [line for line in readme.read_text().splitlines() if line.startswith("| ti16")]
    assert len(row) == 1 and "1.23× (OpenVINO)" in row[0]  # the last file counts
    readme.write_text("no markers")
    failed = script("readme_table.py", results, "--readme", readme)
    assert failed.returncode == 1 and "needs the lines" in failed.stderr and readme.read_text() == "no markers"


def test_plots_are_drawn(results, tmp_path):
    pytest.importorskip("matplotlib")
    done = script("plots.py", "--kernels", results, "--cases", results, "--out", tmp_path / "plots")
    assert done.returncode == 0, done.stderr
    for name in ("roofline.png", "pytorch.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")


needs_compiler = pytest.mark.skipif(not (shutil.which("cc") or "CC" in os.environ), reason="no C compiler")


@needs_compiler
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_sweep_of_tiles(precision, tmp_path):
    file = tmp_path / "sweep.json"
    short = ("--rounds", 3, "--seconds", 0.005, "--json", file)  # less would be a question of what else runs
    named = ("--variants", "rows=4,unroll=1", "rows=6")  # the second is what csrc has
    done = script("sweep.py", "--isa", "portable", "--precision", precision, *named, *short)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["variants"] == [{}, {"rows": 4, "unroll": 1}]
    for product, entry in found["products"].items():
        assert entry["ratio"][0] == 1 and 0.1 < entry["ratio"][1] < 10, product
        assert all(0 < share <= best < 1.5 for share, best in zip(entry["share"], entry["best"])), product


def test_sweep_refuses(tmp_path):
    for words, message in (
        (("--variants", "rows=17"), "rows must be one of 1, 2, …, 16, got '17'"),
        (("--variants", "rows=4,"), "like rows=6,unroll=2"),
        (("--variants", "columns=4"), "there is no 'columns'"),
        (("--isa", "portable", "--variants", "panels=600000"), "has rows, depth, unroll, not panels"),
        (("--isa", "amx"), "nothing is swept of amx in f32"),
        (("--rounds", 0), "--rounds"),
        (("--json", tmp_path / "none" / "x.json"), "--json"),
    ):
        failed = script("sweep.py", *words)
        assert failed.returncode == 2 and message in failed.stderr and "Traceback" not in failed.stderr


@pytest.fixture
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", BENCH / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_compiler
def test_hidden_rows_are_swept(sweep, tmp_path, monkeypatch):
    """They are only of AMX's table; the program that calls them serves every one."""
    monkeypatch.setattr(sweep, "PRODUCTS", {"hidden": (5, 40, 33, "hidden")})
    compiler = shlex.split(os.environ.get("CC", "cc"))
    variant = sweep.Variant("portable", "bf16", tmp_path, {"hidden": "apart"}, compiler)
    rng, results = np.random.default_rng(0), sweep.allocate(2 * 5 * 40, np.float32)  # two places
    x, w = (sweep.rounded(rng.standard_normal(shape, np.float32)) for shape in ((5, 33), (33, 40)))
    variant.prepare("hidden", x, w, results)  # compares
    assert variant.run("hidden", 2) > 0


@needs_compiler
@pytest.mark.skipif("amx" not in team.isa_names(False), reason="built without AMX's table")
def test_all_changes_of_amx_compile(sweep, tmp_path):
    """Together, and are linked: nothing of it runs, so the CPU may lack AMX."""
    changes = {name: values[-1] for name, values in sweep.SWEPT["amx", "bf16"].items()}
    sweep.Variant("amx", "bf16", tmp_path, changes, shlex.split(os.environ.get("CC", "cc")))


def test_what_is_swept_is_in_the_sources(sweep):
    """Each change of each table, AMX's too: where its pattern is found no more, the program says so and ends."""
    for (isa, precision), swept in sweep.SWEPT.items():
        for name, values in swept.items():
            changed = [sweep.edited(isa, sweep.element_of(precision), {name: value}) for value in values]
            assert any(changed), (isa, precision, name)


def test_builds_take_turns(tmp_path):
    here = Path(cli.__file__).parents[2]
    done = script(
        "turns.py", here, here, "--cases", "digits", "--seconds", 0.01, "--turn", 0.002, "--restarts", 1, "--depth", 1
    )
    assert done.returncode == 0, done.stderr
    for task in ("train", "forward"):
        assert f"digits* {task}, 2 rounds" in done.stdout
    assert "ratio 1.000 (1.000 to 1.000)" in done.stdout
    failed = script("turns.py", tmp_path)
    assert failed.returncode == 2 and "there is no cvit in" in failed.stderr
    failed = script("turns.py", here, "--restarts", 0)
    assert failed.returncode == 2 and "--restarts" in failed.stderr


def test_cycles_times_passes():
    """The process that `perf` watches; `perf` itself is not everywhere."""
    for task in ("train", "forward"):
        done = script("cycles.py", "--run", "digits", task, 0.01)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert 0 < found["flops_per_s"] < found["peak"]
