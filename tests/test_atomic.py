"""Whole or not at all: what a failure, a full disk, a kill or a race leaves of a save."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minifm import atomic
from minifm.atomic import atomic_directory, atomic_file, replace_link
from minifm.errors import UserError


def everything(directory):
    """{relative path: contents} beneath a directory, hidden or not."""
    return {str(path.relative_to(directory)): path.read_bytes()
            for path in sorted(Path(directory).rglob("*")) if path.is_file()}


# -- what is there afterwards ----------------------------------------------------------------------


def test_a_directory_appears_with_all_it_holds(tmp_path):
    target = tmp_path / "runs" / "new"
    with atomic_directory(target) as aside:
        (aside / "a").write_bytes(b"1")
        (aside / "inner").mkdir()
        (aside / "inner/b").write_bytes(b"2")
        assert not target.exists()
    assert everything(tmp_path) == {"runs/new/a": b"1", "runs/new/inner/b": b"2"}


def test_a_block_that_raises_leaves_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "new") as aside:
        (aside / "a").write_bytes(b"1")
        1 / 0
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "file") as file:
        file.write(b"half of the n")
        1 / 0
    assert everything(tmp_path) == {"file": b"old"}


def test_a_file_is_replaced_and_keeps_its_neighbours(tmp_path):
    (tmp_path / "other").write_bytes(b"x")
    for contents in (b"first", b"second"):
        with atomic_file(tmp_path / "file") as file:
            file.write(contents)
        assert everything(tmp_path) == {"file": contents, "other": b"x"}


def test_a_directory_in_the_place_of_a_file_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "d" / "inner").mkdir(parents=True)
    said = r"d: expected a file, or a name that is free, found a directory"
    with pytest.raises(UserError, match=said), atomic_file(tmp_path / "d"):
        raise AssertionError("nothing is written in vain")
    monkeypatch.setattr(Path, "is_dir",         # one that came in the meantime
                        lambda self: self.name != "d" and os.path.isdir(self))
    with pytest.raises(UserError, match="d: cannot be written .Is a directory") as error:
        with atomic_file(tmp_path / "d") as file:
            file.write(b"new")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["d"] and os.listdir(tmp_path / "d") == ["inner"]


def test_a_directory_that_is_not_empty_is_never_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/keep").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"2")
    for name in ("full", "file"):
        with pytest.raises(UserError, match=f"{name}: exists already and is not replaced"):
            with atomic_directory(tmp_path / name):
                pass
    assert everything(tmp_path) == {"full/keep": b"1", "file": b"2"}
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as aside:
        (aside / "a").write_bytes(b"3")
    assert (tmp_path / "empty/a").read_bytes() == b"3"


def test_a_link_is_replaced_in_one_step_and_a_directory_is_left_alone(tmp_path):
    for target in ("one", "two"):
        (tmp_path / target).mkdir()
        replace_link(tmp_path / "last", target)
        assert os.readlink(tmp_path / "last") == target
    with pytest.raises(UserError, match="expected a link, found a directory"):
        replace_link(tmp_path / "one", "two")
    assert sorted(os.listdir(tmp_path)) == ["last", "one", "two"]


# -- failures of the disk --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_the_disk_refuses_is_one_line_and_nothing_changes(tmp_path, monkeypatch, code):
    (tmp_path / "file").write_bytes(b"old")

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=os.strerror(code)) as error:
        with atomic_file(tmp_path / "file") as file:
            file.write(b"new")
    assert "\n" not in str(error.value) and "nothing there was changed" in str(error.value)
    with pytest.raises(UserError, match=os.strerror(code)), atomic_directory(tmp_path / "d"):
        pass
    assert everything(tmp_path) == {"file": b"old"} and not (tmp_path / "d").exists()


TOO_LARGE = """
import resource, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from test_training import trainer_in
from minifm.training import checkpoint
trainer = trainer_in({run!r})
trainer.train(until=3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)       # then writing fails with EFBIG
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    trainer.train()
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_checkpoint_that_finds_no_room_leaves_the_last_one_whole(tmp_path):
    """A real refusal by the system: no file may grow beyond 4 kB."""
    root, run = str(Path(atomic.__file__).parents[1]), tmp_path / "run"
    script = TOO_LARGE.format(tests=str(Path(__file__).parent), root=root, run=str(run))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.stdout.startswith("UserError") and "cannot be written" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    from test_training import trainer_in
    resumed = trainer_in(run)
    resumed.resume()
    assert resumed.step == 3
    assert not [name for name in os.listdir(run) if name.startswith(".")]


# -- kills and races -------------------------------------------------------------------------------


def test_the_next_save_sweeps_what_a_kill_left(tmp_path):
    script = ("import os, signal\nfrom minifm.atomic import atomic_directory, atomic_file\n"
              f"with atomic_directory({str(tmp_path / 'd')!r}) as aside:\n"
              "    (aside / 'a').write_bytes(b'1')\n"
              f"    with atomic_file({str(tmp_path / 'f')!r}) as file:\n"
              "        file.write(b'2')\n        os.kill(os.getpid(), signal.SIGKILL)\n")
    subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    left = os.listdir(tmp_path)
    assert len(left) == 2 and all(name.startswith(".") for name in left)
    with atomic_file(tmp_path / "g") as file:
        file.write(b"3")
    assert everything(tmp_path) == {"g": b"3"}


def test_a_sweep_leaves_alone_what_is_being_written(tmp_path):
    with atomic_directory(tmp_path / "d") as aside:
        (aside / "a").write_bytes(b"1")
        with atomic_file(tmp_path / "f") as file:
            file.write(b"2")
            atomic.sweep(tmp_path)
    assert everything(tmp_path) == {"d/a": b"1", "f": b"2"}


def test_a_directory_is_held_by_one_process_at_a_time(tmp_path):
    script = f"from minifm.atomic import exclusive\nwith exclusive({str(tmp_path)!r}): pass"

    def other():
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              timeout=60, check=False).stderr
    with atomic.exclusive(tmp_path):
        assert "another process is at work in this directory" in other()
    assert other() == ""


def test_many_writers_and_readers_see_only_whole_files(tmp_path):
    contents = [bytes([65 + i]) * 50_000 for i in range(4)]
    path, seen, over = tmp_path / "file", set(), threading.Event()
    with atomic_file(path) as file:
        file.write(contents[0])

    def write(text):
        for _ in range(15):
            with atomic_file(path) as file:
                file.write(text[:100])
                file.write(text[100:])

    def read():
        while not over.is_set():
            seen.add(path.read_bytes())
    writers = [threading.Thread(target=write, args=(text,)) for text in contents]
    reader = threading.Thread(target=read)
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert seen <= set(contents) and os.listdir(tmp_path) == ["file"]
