"""Files and directories that appear whole or not at all: a crash leaves the old or the new.

Everything is written aside, under a hidden name in the same directory, forced to the disk (each
file, then the directories), and only then renamed. Whoever writes holds a lock on what is aside;
the system drops it when the process dies, even by kill -9, and the next save removes the rest.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
from pathlib import Path

from minifm.errors import UserError

_ASIDE = ".aside-"
# What the disk or its owner refuses: the user can mend it.
_REFUSALS = {getattr(errno, name) for name in (
    "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG", "ENOTDIR",
    "EEXIST", "ENOENT", "ELOOP", "EISDIR")}


@contextlib.contextmanager
def atomic_directory(path):
    """`with atomic_directory("run/step-5") as aside:` fill the directory `aside` (a Path); at the
    end of the block it becomes `path`. If the block raises, nothing is left of it.

    Raises UserError when `path` exists and is not an empty directory, or when the disk refuses.
    """
    path = Path(path)
    with _refusals(path):
        _check_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        aside, lock = _claim(os.mkdir, path)
        try:
            yield aside
            _force_tree(aside)
            _check_free(path)
            os.rename(aside, path)
            _force(path.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        finally:
            os.close(lock)


@contextlib.contextmanager
def atomic_file(path):
    """`with atomic_file("metrics.json") as file:` write bytes to `file`; at the end of the block
    it replaces `path`. If the block raises, `path` is what it was.

    Raises UserError when a directory has that name, or when the disk refuses.
    """
    path = Path(path)
    with _refusals(path):
        if path.is_dir():
            raise UserError(f"{path}: expected a file, or a name that is free, found a directory; "
                            "it is left alone")
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        aside, lock = _claim(Path.touch, path)
        try:
            with open(aside, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            _force(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)


def replace_link(link, target):
    """Make `link` a symbolic link to `target`, a name relative to the link's directory, in one
    step: a reader sees the old target or the new one. Raises UserError."""
    link = Path(link)
    with _refusals(link):
        if link.is_dir() and not link.is_symlink():
            raise UserError(f"{link}: expected a link, found a directory; it is left alone")
        sweep(link.parent)
        replaced = False
        while not replaced:         # again, should another process sweep the new link away
            aside = link.parent / _aside_name(link)
            os.symlink(target, aside)
            with contextlib.suppress(FileNotFoundError):
                os.replace(aside, link)
                replaced = True
        _force(link.parent)


@contextlib.contextmanager
def exclusive(directory):
    """Within `with exclusive(directory):` no other process may hold the directory so; one that
    dies lets go of it. Raises UserError while another does."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: another process is at work in this directory") from None
        yield
    finally:
        os.close(lock)


def sweep(directory):
    """Remove what killed saves left aside in `directory`; what a living process writes stays."""
    for name in os.listdir(directory):
        if not (name.startswith(".") and _ASIDE in name):
            continue
        left = Path(directory) / name
        with contextlib.suppress(OSError):
            if left.is_symlink():
                left.unlink()
                continue
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(lock)


def _claim(create, path):
    """A new, locked place aside: its Path, and the descriptor that holds the lock."""
    while True:
        aside = path.parent / _aside_name(path)
        try:
            create(aside)
            lock = os.open(aside, os.O_RDONLY)
        except (FileExistsError, FileNotFoundError):
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(aside):
            return aside, lock
        os.close(lock)              # another process swept it away before the lock was ours


def _aside_name(path):
    return f".{path.name}{_ASIDE}{secrets.token_hex(8)}"


def _check_free(path):
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already and is not replaced; choose another name or "
                        "remove it first")


def _force_tree(directory):
    for folder, _, files in os.walk(directory):
        for name in files:
            _force(Path(folder) / name)
        _force(folder)


def _force(path):
    """Let what `path`, a file or a directory, holds reach the disk."""
    if stat.S_ISREG(mode := os.lstat(path).st_mode) or stat.S_ISDIR(mode):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _refusals(path):
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); nothing there was changed, "
                        "what was saved before is whole") from error


def write_json(contents, file):
    """Write a JSON object to `file`, all of it or nothing. Raises UserError."""
    with atomic_file(file) as stream:
        stream.write((json.dumps(contents, indent=2) + "\n").encode())
