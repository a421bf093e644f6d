"""Files are written whole or not at all, whatever the disk does."""

import errno
import os
import resource
import shutil

import pytest
from safetensors import SafetensorError

from fedsa_lora import files
from fedsa_lora.errors import RunError
from fedsa_lora.files import append, disk_fault, sweep, write_atomically, writing

OLD, NEW = b"old" * 10_000, b"new" * 20_000


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_while_writing(monkeypatch):
    """The kernel itself refuses to make a file longer than what is there."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(files.os, "fsync", lambda _: None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(OLD), hard))


def full_while_syncing(monkeypatch):
    monkeypatch.setattr(files.os, "fsync", no_space)


def full_while_renaming(monkeypatch):
    monkeypatch.setattr(files.os, "replace", no_space)


@pytest.fixture
def _any_length():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_content_is_what_was_written_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "file.json"
    for content in (OLD, b"", NEW):
        assert write_atomically(path, content) == path
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file.json"]


@pytest.mark.case(22)
@pytest.mark.usefixtures("_any_length")
@pytest.mark.parametrize("fill", [full_while_writing, full_while_syncing, full_while_renaming])
def test_a_full_disk_leaves_the_old_content_and_is_reported_by_name(tmp_path, monkeypatch, fill):
    path = tmp_path / "state"
    write_atomically(path, OLD)
    fill(monkeypatch)
    with pytest.raises(RunError, match=rf"^{path} cannot be written: .*unchanged.*check space"):
        write_atomically(path, NEW)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["state"]


def test_the_file_and_then_its_folder_are_synced(tmp_path, monkeypatch):
    path, synced, sync = tmp_path / "state", [], os.fsync

    def noting(descriptor):
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noting)
    write_atomically(path, NEW)
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.case(39)
def test_a_folder_that_is_gone_is_not_made_again_by_what_is_written_into_it(tmp_path):
    with pytest.raises(RunError, match=r"run/status.json cannot be written: No such file"):
        write_atomically(tmp_path / "run" / "status.json", NEW)
    with pytest.raises(RunError, match=r"run/rows.jsonl cannot be written: No such file"):
        append(tmp_path / "run" / "rows.jsonl", "row")
    assert os.listdir(tmp_path) == []


@pytest.mark.case(40)
@pytest.mark.usefixtures("_any_length")
def test_a_row_for_which_there_is_no_room_leaves_no_half_of_it(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append(path, "first\n")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, hard))
    with pytest.raises(RunError, match=r"rows.jsonl cannot be written: .*earlier rows are kept"):
        append(path, "second\n")
    assert path.read_text() == "first\n"


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.case(40)
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.ENOSPC, "x", "file"), FULL),
        (SafetensorError('I/O error: Os { code: 28, kind: StorageFull, message: "No space" }'), FULL),
        (Exception("No space left on device (os error 28)"), FULL),
        (shutil.Error([("a", "b", f"[Errno 28] {FULL}: 'b'")]), FULL),
        (OSError("no such model"), ""),
        (ValueError("a bug"), ""),
    ],
)
def test_a_full_disk_is_known_in_the_words_of_each_library_that_writes(tmp_path, error, fault):
    assert disk_fault(error) == fault
    with pytest.raises(RunError if fault else type(error)) as caught, writing(tmp_path):
        raise error
    assert not fault or f"{tmp_path} cannot be written: {fault}" in str(caught.value)


def test_a_place_below_a_file_is_reported_by_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="file/state cannot be written"):
        write_atomically(tmp_path / "file" / "state", NEW)


def test_what_a_killed_writer_of_the_same_file_left_is_swept(tmp_path):
    for name in (".state.999999.tmp", ".state.1.tmp", ".other.999999.tmp", "state.tmp"):
        (tmp_path / name).write_bytes(b"half")
    write_atomically(tmp_path / "state", NEW)
    assert sorted(os.listdir(tmp_path)) == [".other.999999.tmp", "state", "state.tmp"]
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["state", "state.tmp"]
