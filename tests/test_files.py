"""How files are written: names, links, modes, what is not a regular file, and a disk without room."""

import contextlib
import errno
import os
import stat

import pytest

from cvit.base.files import check_writable, replacing
from cvit.formats import checkpoint
from cvit.model.config import ViTConfig
from cvit.model.vit import ViT


def write(path, text="new"):
    with replacing(path) as temporary:
        temporary.write_text(text)


def check(path):
    check_writable(path)


@pytest.fixture
def umask():
    """A function that sets the umask; the old one is put back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@contextlib.contextmanager
def room(size):
    """No file grows beyond `size` bytes while the block runs; as on a full disk, writing is an error."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_longest_legal_name(tmp_path):
    path = tmp_path / ("n" * 255)
    check(path)
    assert os.listdir(tmp_path) == []
    write(path)
    assert path.read_text() == "new" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("there", [True, False], ids=["file", "dangling"])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, there):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    if there:
        (folder / "target").write_text("old")
    (tmp_path / "link").symlink_to("elsewhere/target")
    check(tmp_path / "link")
    assert (folder / "target").exists() == there
    write(tmp_path / "link")
    assert os.readlink(tmp_path / "link") == "elsewhere/target"
    assert (folder / "target").read_text() == "new" and os.listdir(folder) == ["target"]


@pytest.mark.parametrize("call", [check, write])
@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_only_a_regular_file_is_replaced(tmp_path, call, kind):
    path = {"folder": tmp_path / "folder", "fifo": tmp_path / "fifo", "device": os.devnull}[kind]
    if kind == "folder":
        path.mkdir()
    if kind == "fifo":
        os.mkfifo(path)
    before, there = os.stat(path), os.listdir(tmp_path)
    with pytest.raises(OSError, match="Is a directory" if kind == "folder" else "Not a regular file") as caught:
        call(path)
    assert caught.value.filename == str(path)
    after = os.stat(path)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode) and os.listdir(tmp_path) == there


@pytest.mark.parametrize("call", [check, write])
@pytest.mark.parametrize("name, number", [("none/file", errno.ENOENT), ("n" * 256, errno.ENAMETOOLONG)])
def test_what_cannot_be_written_is_named(tmp_path, call, name, number):
    with pytest.raises(OSError) as caught:
        call(tmp_path / name)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("call", [check, write])
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, call):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="file"):
        call(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path, umask, mask, mode):
    umask(mask)
    write(tmp_path / "file")
    checkpoint_model(tmp_path / "model")
    for name in ("file", "model"):  # safetensors makes its file anew, with a mode of its own
        assert stat.S_IMODE(os.stat(tmp_path / name).st_mode) == mode


def test_a_replaced_file_keeps_its_mode(tmp_path, umask):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    write(path)
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def checkpoint_model(path):
    checkpoint.save(path, ViT(ViTConfig(image_size=8, patch_size=4, width=32, depth=1, heads=2, classes=3), seed=0))


def test_without_room_the_old_model_stays_and_the_error_names_the_file(tmp_path):
    path = tmp_path / "model"
    path.write_text("old")
    with pytest.raises(OSError, match="File too large") as caught, room(1000):
        checkpoint_model(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be reserved here")
def test_missing_room_is_found_beforehand(tmp_path):
    with room(1000):
        check_writable(tmp_path / "model", 1000)
        with pytest.raises(OSError, match="File too large") as caught:
            check_writable(tmp_path / "model", 1001)
    assert caught.value.filename == str(tmp_path / "model")
    assert os.listdir(tmp_path) == []
