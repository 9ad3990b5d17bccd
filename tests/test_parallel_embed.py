"""`cvit embed` by several processes, and what the other commands say to a launcher of several."""

import os
import re
import shutil
import sys

import mpi_runs
import numpy as np
import pytest

from cvit import Preprocessing, ViT, ViTConfig, checkpoint, cli
from cvit.cli import ranks
from cvit.parallel.ranks import SIZES

Image = pytest.importorskip("PIL.Image")

CONFIG = ViTConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2, classes=4)
CVIT = [sys.executable, "-m", "cvit"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to stand in: a model, and nine pictures of which two are broken."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save("m.safetensors", ViT(CONFIG, preprocessing=Preprocessing(size=16, resize_size=18)))
    rng = np.random.default_rng(0)
    os.mkdir("photos")
    for index in range(9):
        Image.fromarray(rng.integers(0, 256, (30 + index, 40, 3), np.uint8)).save(f"photos/{index}.png")
    for index in (3, 6):
        with open(f"photos/{index}.png", "w") as file:
            file.write("no picture")
    return tmp_path


def embed(count, *options, model="m.safetensors", **settings):
    """`cvit embed` by so many processes; what the progress takes is left out of what rank 0 prints."""
    told = mpi_runs.command(count, [*CVIT, "embed", model, "photos", "--batch", "2", *options], **settings)
    told.outputs = ["".join(s for s in out.splitlines(True) if "images/s" not in s) for out in told.outputs]
    return told


# ---------------------------------------------------------------------------------------------------------- the results
@pytest.mark.parametrize("ending, count", [("csv", 2), ("npz", 3)])
def test_several_processes_write_the_file_of_one(folder, capsys, ending, count):
    assert cli.main(["embed", "m.safetensors", "photos", "--batch", "2", "--out", f"one.{ending}"]) == 0
    alone = capsys.readouterr()
    told = embed(count, "--out", f"all.{ending}")
    assert told.status == 0, str(told)
    first, last = told.outputs[0].splitlines()
    assert first.startswith(f"{count} ranks of ") and first.endswith(" of one machine")
    assert last == "all." + alone.out.splitlines()[-1].removeprefix("one.")
    assert told.errors == [alone.err, *[""] * (count - 1)] and told.outputs[1:] == [""] * (count - 1)
    if ending == "npz":
        with np.load("one.npz") as one, np.load("all.npz") as several:
            assert one["names"].tolist() == several["names"].tolist()
            assert one["features"].dtype == several["features"].dtype and (one["features"] == several["features"]).all()
    else:
        assert (folder / f"one.{ending}").read_bytes() == (folder / f"all.{ending}").read_bytes()


def test_more_processes_than_chunks(folder):
    for index in range(2, 9):
        os.remove(f"photos/{index}.png")
    assert cli.main(["embed", "m.safetensors", "photos", "--batch", "2", "--out", "one.npy"]) == 0
    told = embed(3, "--out", "all.npy")
    assert told.status == 0 and "all.npy: 2 pictures, 8 features\n" in told.outputs[0], str(told)
    assert (folder / "one.npy").read_bytes() == (folder / "all.npy").read_bytes()


def test_rank_0_takes_results_in_order_and_others_wait_for_it():
    mpi_runs.succeeds(3, "deal.py")


# ----------------------------------------------------------------------------------------------------------- the errors
def test_strict_stops_at_the_first_broken_picture_and_leaves_the_old_file(folder):
    (folder / "f.npy").write_text("old")
    told = embed(2, "--out", "f.npy", "--strict")
    assert told.status == 2, str(told)
    assert told.errors[0].startswith("cvit: error: photos/3.png is not a picture in a format that is read here")
    assert told.errors[0].count("\n") == 1 and told.errors[1] == ""
    assert (folder / "f.npy").read_text() == "old" and sorted(os.listdir()) == ["f.npy", "m.safetensors", "photos"]


def test_other_weights_are_seen_before_the_first_picture(folder):
    """Every process sees the difference, and rank 0 tells it."""
    for rank in range(2):
        checkpoint.save(f"m{rank}.safetensors", ViT(CONFIG, seed=rank))
    line = [
        "sh",
        "-c",
        f"exec {sys.executable} -m cvit embed m${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}.safetensors photos --out f.npy",
    ]
    told = mpi_runs.command(2, line)
    assert told.status == 2 and told.errors[1] == "", str(told)
    assert told.errors[0].startswith("cvit: error: ranks differ in the checksum of the weights: rank 0 (host ")
    assert told.errors[0].count("\n") == 1 and not os.path.exists("f.npy")


def test_the_one_that_fails_says_so_and_all_end(folder):
    os.mkdir("there")
    shutil.copy("m.safetensors", "there")
    go = "test ${OMPI_COMM_WORLD_RANK:-$PMI_RANK} = 1 && cd there"
    told = mpi_runs.command(
        2, ["sh", "-c", f"{go}; exec {sys.executable} -m cvit embed m.safetensors photos --out f.npy"]
    )
    assert told.status == 2, str(told)
    wanted = r"cvit: error: rank 1 \(host \S+\): photos: No such file or directory\n"
    assert told.errors[0] == "" and re.fullmatch(wanted, told.errors[1]), str(told)
    assert not os.path.exists("f.npy")


# --------------------------------------------------------------------------------------------------- the other commands
@pytest.fixture
def launcher(monkeypatch):
    """A function that makes this process look like one of two that a launcher has started."""
    for name in (*SIZES, *ranks.PLACES, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "GRACE", 0.0)

    def set_rank(rank):
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))

    return set_rank


REFUSED = {
    "eval": "m.safetensors digits", "info": "S/16", "convert": "m.safetensors n.safetensors",
    "predict": "m.safetensors a.jpg", "plot": "curves run", "bench": "",
}  # fmt: skip


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in cli.SEVERAL])
def test_other_commands_run_in_one_process(launcher, capsys, command):
    """The error comes from rank 0 alone, and before anything is done: none of these files is there."""
    for rank in range(2):
        launcher(rank)
        assert cli.main([command, *REFUSED[command].split()]) == 2
        error = f"cvit: error: cvit {command} runs in one process: start it without mpiexec or srun\n"
        assert capsys.readouterr() == ("", "" if rank else error)


@pytest.mark.parametrize("line", ["--version", "--help", "info --help", "train --help", "embed --help"])
def test_help_and_version_are_told_once(launcher, capsys, line):
    assert cli.main(line.split()) == 0
    alone = capsys.readouterr()
    for rank in range(2):
        launcher(rank)
        assert cli.main(line.split()) == 0
        assert capsys.readouterr() == (("", "") if rank else alone)


def test_a_wrong_option_is_told_once(launcher, capsys):
    for rank in range(2):
        launcher(rank)
        assert cli.main(["embed", "m.safetensors", "photos", "--out", "f.npy", "--batch", "0"]) == 2
        told, errors = capsys.readouterr()
        assert told == "" and errors.count("\n") == (0 if rank else 1)


def test_a_launcher_hears_of_it_from_rank_0(folder):
    told = mpi_runs.command(2, [*CVIT, "predict", "m.safetensors", "photos"])
    assert told.status == 2, str(told)
    assert told.errors == ["cvit: error: cvit predict runs in one process: start it without mpiexec or srun\n", ""]
    assert told.outputs == ["", ""]
