"""`cvit bench --precision bf16`: who computes in bfloat16 and is checked as such, the report and its JSON, the peak."""

import json
import sys

import numpy as np
import pytest
from test_bench import TINY, run, script
from test_bench import entry as speed_of

from cvit import bench
from cvit.bench import cases, lineup, machine, peers, report
from cvit.engine import runtime, team


def test_cvit_agrees_within_its_rounding(tmp_path):
    case, file = cases.Case.named("digits", **TINY), tmp_path / "case.npz"
    case.write_arrays(file)
    expected = lineup.reference(case, True, 1)
    with peers.Peer("cvit", threads=1, variant="bf16") as peer:
        assert lineup.load(peer, case, file, peer.tasks) == "" and peer.precision == "bf16"
        found = peer.ask("check", logits=True, gradients=True, steps=2)
        assert 2e-4 < lineup.compare("cvit", found, expected, lineup.BFLOAT16) < 3e-2
        with pytest.raises(lineup.Disagreement):
            lineup.compare("cvit", found, expected)


def test_peers_in_bfloat16_run_beside_their_float32():
    assert peers.with_bfloat16(("jax", "torch", "openvino")) == (
        "jax", "torch", "torch-bf16", "openvino", "openvino-bf16",
    )  # fmt: skip
    assert peers.with_bfloat16(("torch-bf16", "torch")) == ("torch-bf16", "torch")


def test_report_of_a_machine_with_amx(capsys, tmp_path, monkeypatch):
    """Its peak, which no machine that has no AMX can measure, is a given one."""
    ask = peers.Peer.ask
    measured = {"isa": "amx", "of": "tdpbf16ps", "peak": 5.9e12}
    monkeypatch.setattr(
        peers.Peer, "ask", lambda self, do, **fields: measured if do == "peak" else ask(self, do, **fields)
    )
    monkeypatch.setattr(machine, "bfloat16_instructions", lambda: ["amx_bf16", "avx512_bf16"])
    path = tmp_path / "out.json"
    arguments = ("--precision", "bf16", "--vs", "numpy,cvit-f32", "--threads", "1", "--json", str(path))
    status, text = run(capsys, *arguments)
    assert status == 0, text
    heading = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line}
    assert heading["ISA"] == "amx" and heading["precision"] == "bf16"
    assert heading["bfloat16"] == "amx_bf16, avx512_bf16"
    assert heading["peak"] == "5900.0 GFLOP/s tdpbf16ps, measured"
    assert "AdamW update" in text and "share of the tdpbf16ps peak" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("digits*")]
    timed = [row[:3] for row in rows if row[2] in peers.WORKERS]
    assert timed == [["digits*", task, who] for task in cases.TASKS for who in ("cvit", "numpy", "cvit-f32")]
    data = json.loads(path.read_text())
    assert data["precision"] == "bf16" and data["peak_of"] == "tdpbf16ps" and data["settings"]["optimizer"] == "adamw"
    assert data["machine"]["cpu"] and data["machine"]["isa"] == "amx"
    assert data["machine"]["bfloat16"] == ["amx_bf16", "avx512_bf16"]
    assert data["versions"]["numpy"] == np.__version__ and "--precision bf16" in data["command"]
    for entry in data["cases"]:
        assert entry["precision"] == ("bf16" if entry["who"] == "cvit" else "f32")
        assert (entry["error"] > 2e-4) == (entry["who"] == "cvit")
        assert entry["share"] == pytest.approx(entry["flops_per_s"] / 5.9e12)
        if entry["who"] == "cvit":  # in float32 it is no peer, be it faster or not
            other = next(e for e in data["cases"] if e["who"] == "numpy" and e["task"] == entry["task"])
            assert entry["fastest_peer"] == {"who": "numpy", "ratio": other["ratio"]}
            last = [row for row in rows if row[-1] == "numpy" and row[1] == entry["task"]]
            assert [row[-2] for row in last] == [report.times(other["ratio"])]


def test_sections(capsys, tmp_path):
    path = tmp_path / "out.json"
    sections = ("--latency", "--busy", "--memory", "--overhead")
    status, text = run(capsys, *sections, "--precision", "bf16", "--threads", "2", "--json", str(path))
    assert status == 0, text
    data = json.loads(path.read_text())
    for section in ("latency", "busy", "memory"):
        assert data[section] and all(entry["precision"] == "bf16" for entry in data[section])


def test_the_peak_is_what_the_table_multiplies_with():
    for isa in runtime.available_isas():
        runtime.set_isa(isa)
        assert team.isa_of("bf16") == isa
        assert team.peak_of("bf16") == {"amx": "tdpbf16ps"}.get(isa, "float32 FMA")
        assert team.peak_of("f32") == "float32 FMA" and team.peak_of("f64") == "float64 FMA"

        def ratio():
            half, whole = dict(precision="bf16"), dict(dtype="float32")
            return np.divide(*(team.measure_peak(**which, threads=1, seconds=0.01) for which in (half, whole)))

        if isa == "amx":
            assert ratio() > 1
        else:  # the same instructions as float32's; on a busy machine one of the two may have been kept waiting
            assert any(0.3 < ratio() < 3 for _ in range(10))


def test_bfloat16_instructions(tmp_path):
    file = tmp_path / "cpuinfo"
    for text, found in (
        ("model name\t: CPU\nflags\t\t: fpu avx512_bf16 amx_tile amx_bf16x\n", ["avx512_bf16"]),
        ("flags\t\t: amx_bf16 avx512f\n", ["amx_bf16"]),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", ["bf16"]),
        ("flags\t\t: fpu sse2\n", []),
    ):
        file.write_text(text)
        assert machine.bfloat16_instructions(str(file)) == found
    if not sys.platform.startswith("darwin"):
        assert machine.bfloat16_instructions(str(tmp_path / "none")) is None
    assert "no instructions" in bench._bfloat16([]) and "unknown" in bench._bfloat16(None)


def test_the_readmes_table_keeps_the_precisions_apart(tmp_path):
    readme, whole, half = (tmp_path / name for name in ("README.md", "whole.json", "half.json"))
    readme.write_text("<!-- bench: begin -->\n<!-- bench: end -->\n")
    speeds = [
        speed_of("ti16", "train", "cvit", 0.01, None), speed_of("ti16", "train", "torch", 0.03, 3.0),
        speed_of("ti16", "forward", "cvit", 0.01, None), speed_of("ti16", "forward", "openvino", 0.02, 2.0),
    ]  # fmt: skip
    data = {"machine": {"cpu": "A CPU", "threads": 2, "isa": "amx", "cvit": "1"}, "peak": {"2": 2e11}, "command": "c"}
    whole.write_text(json.dumps({**data, "cases": speeds}))
    data |= {"precision": "bf16", "peak_of": "tdpbf16ps", "peak": {"2": 4e12}}
    peers = [("train", "torch-bf16", 1.5), ("train", "cvit-f32", 1.2), ("forward", "openvino-bf16", 1.05),
             ("forward", "cvit-f32", 1.01)]  # fmt: skip
    speeds += [speed_of("ti16", task, who, 0.02, ratio) for task, who, ratio in peers]
    half.write_text(json.dumps({**data, "cases": speeds}))
    done = script("readme_table.py", whole, half, "--readme", readme)
    assert done.returncode == 0, done.stderr
    lines = readme.read_text().splitlines()
    first, second = (line for line in lines if line.startswith("| ti16"))
    assert first.startswith("| ti16, batch 8 | ") and "| 3.00× |" in first and "| 2.00× (OpenVINO) |" in first
    assert second.startswith("| ti16, batch 8, bf16 | ")
    assert "| 1.50× (PyTorch in bfloat16) |" in second and "| 1.05× (OpenVINO in bfloat16) |" in second
    assert any("; float32 peak 200 GFLOP/s, tdpbf16ps peak 4000 GFLOP/s, measured" in line for line in lines)
    half.write_text(half.read_text().replace("openvino-bf16", "abacus"))
    failed = script("readme_table.py", half, "--readme", readme)
    assert failed.returncode == 1 and "has no name for the peer 'abacus'" in failed.stderr
    assert readme.read_text().splitlines() == lines
