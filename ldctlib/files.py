"""Files that appear whole or not at all, and values that JSON can hold."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ldctlib.errors import LdctError, ParameterError, WriteError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A scratch file beside ``path`` to write to; it takes ``path``'s place at the end, on failure nothing is left.

    Its name ends as ``path``'s does, since some writers look there for the format. Missing folders are made. Raises
    WriteError where the system refuses.
    """
    path = Path(path)
    with _placed(path):
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=f"-{path.name}", dir=path.parent)
        os.close(handle)
        scratch = Path(name)
        try:
            yield scratch
            with open(scratch, "rb") as file:
                os.fsync(file.fileno())
            scratch.chmod(0o644)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A scratch folder beside ``folder`` that becomes it at the end; ``folder`` is absent or empty before. Raises
    WriteError where the system refuses."""
    folder = Path(folder)
    with _placed(folder):
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        scratch.chmod(0o755)
        try:
            yield scratch
            if folder.exists():
                folder.rmdir()
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Makes the folders above ``path``, and takes them away again where nothing comes to lie there."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):  # another process may have filled it
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, LdctError):
            raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error
        raise


def is_taken(path: Path) -> bool:
    """Whether a file or a folder that is not empty lies there. Raises WriteError where that may not be seen."""
    try:
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise WriteError(f"{path} cannot be looked at: {error.strerror}; name another place") from error


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file while the body runs; WriteError, that another process is at ``what``, where one holds it.

    The file is gone when the body is done. The system lets go of the lock when the process ends, however it does. Where
    a file system knows no locks, none is held.
    """
    with _placed(path):
        file = open(path, "ab")
    try:
        try:
            _lock(file)
            # whoever held it may have removed it in between: then this is nobody's file
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except (BlockingIOError, PermissionError, FileNotFoundError):
            same = False
        if not same:
            raise WriteError(f"another process is at {what}: wait until it is done, or name another place")
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                os.unlink(path)
    finally:
        file.close()


def _lock(file: IO) -> None:
    """Lock the file for this process alone. Raises BlockingIOError or PermissionError where another holds it."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:  # a file system without locks
        pass


def make_folder(out: str | os.PathLike) -> Path:
    """The folder, made if needed and fit to write to. Raises ParameterError."""
    path = Path(out).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(f"out={os.fspath(out)!r} cannot be made a folder: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise ParameterError(f"out={os.fspath(out)!r} cannot be written to; name another folder")
    return path


def file_to_write(path: str | os.PathLike) -> Path:
    """``path``, to be written when all is done. Raises ParameterError now if its folder does not take a file."""
    path = Path(path).expanduser()
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent} that can be written to"
        raise ParameterError(f"{path} cannot be written: {why}")
    return path


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file that appears whole or not at all; text in UTF-8."""
    with whole_file(path) as scratch:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write :func:`plain` of ``value`` as JSON, whole or not at all."""
    return write_whole(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Tensors, NumPy values and paths as JSON's own types. JSON has no NaN and no infinity: null and "inf"."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
