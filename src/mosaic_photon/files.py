"""Small files read and written whole, locks, and paths: as a message shows them, as people write them in a config."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mosaic_photon.errors import ConfigError

OWN = ".mosaic_photon."
"""What the names of files begin with that are this package's own among others, or not whole yet."""


@contextmanager
def locked(path: Path, wait: bool = True, remove: bool = False) -> Iterator[bool]:
    """Hold the lock file; yields whether it is held, always with `wait`. With `remove` the file goes in the end.

    The kernel wakes who waits and drops the lock of a process that dies; the package filelock would ask and ask.
    """
    fd = _open_lock(path)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if _is_at(path, fd):
                break
            os.close(fd)  # another holder has removed it since it was opened
            fd = _open_lock(path)
        try:
            yield True
        finally:
            if remove:
                path.unlink(missing_ok=True)
            fcntl.flock(fd, fcntl.LOCK_UN)  # not only close: a process forked meanwhile holds a copy of fd
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all. The folder is there, or is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{OWN}{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """The folder is there inside; if that fails, it and those above it that were made for it are not left empty."""
    made = [folder for folder in (path, *path.parents) if not os.path.exists(folder)]
    try:
        if made:
            path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


def json_bytes(content: object) -> bytes:
    """As people and `diff` read it."""
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def write_json(path: Path, content: object) -> None:
    """Write whole or not at all."""
    write_whole(path, json_bytes(content))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: it cannot be read or is malformed; the message ends with the remedy.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {display(path)} ({error}): {remedy}") from error
    return json_object(data, path, remedy)


def json_object(data: bytes, path: str | Path, remedy: str) -> dict[str, Any]:
    """The object that is a file's JSON. Raises as `read_json`."""
    try:
        content = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise ConfigError(f"cannot read {display(path)} ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{display(path)} holds no JSON object, but {type(content).__name__}: {remedy}")
    return content


def display(path: str | Path) -> str:
    """A path as the user would write it, relative where it is below the working folder, or an address; printable."""
    if "://" in str(path):
        return str(path)
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    shown = absolute if relative.startswith("..") else relative
    return shown.encode("utf-8", "backslashreplace").decode()


def check_path(where: str, path: str, address: bool = False) -> None:
    """Refuse a path that a shell would have changed, or that is the address of an object store.

    Args:
        where: the setting, in the message.
        path: its value.
        address: addresses (s3://...) are right here.

    Raises:
        ConfigError: it is one of these, so that a folder of that name would be read or made.
    """
    if path.startswith("~") or re.search(r"^\$" if address else r"\$[\w{(]", path):
        raise ConfigError(
            f"{where} = {path!r}: '~' and '$' are a shell's; give the whole path (in a YAML data config, "
            "${oc.env:NAME} is a variable of the environment)."
        )
    if "://" in path and not address:
        raise ConfigError(f"{where} = {path!r}: must be a folder of a file system, not an address.")


def existing(path: str) -> str:
    """The path, or the nearest above it that there is."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def check_writable(where: str, path: str) -> None:
    """Refuse a folder that cannot be made or written into; nothing is made.

    Raises:
        ConfigError: the nearest there is above it is a file, or may not be written to.
    """
    folder = existing(path)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{where} = {path!r}: {folder} is not a folder that can be written to.")
