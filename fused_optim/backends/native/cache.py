"""The cache of machine code on disk, so that only the first run of a program needs a compiler.

A file has a magic string, the key, a checksum and the code. A file that belongs to another user, is
writable by others, or is corrupt is ignored and written again. Where the folder is not writable,
code is cached in memory only.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

VARIABLE = "FUSED_OPTIM_CACHE"
MAGIC = b"fused_optim machine code 1\n"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
PACKAGE = Path(__file__).parent
KERNELS = PACKAGE.parent.parent / "kernels"
log = logging.getLogger("fused_optim")


def key(*parts: str) -> str:
    """Return the key of the code that ``parts`` describe: 64 hexadecimal digits.

    The key also depends on the sources of kernels and backend, and on the versions of triton and
    llvmlite.
    """
    digest = hashlib.sha256(MAGIC + _sources())
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


@cache
def _sources() -> bytes:
    """Return a digest of all sources that determine the code, read once per process."""
    digest = hashlib.sha256()
    for path in _made_from():
        text = path.read_bytes()
        digest.update(f"{path.name}:{len(text)}:".encode() + text)
    return digest.digest()


def _made_from() -> Iterator[Path]:
    for folder in (PACKAGE, PACKAGE.parent):
        yield from sorted(folder.glob("*.py"))
    yield from sorted(KERNELS.rglob("*.py"))
    # the files with the versions: importing the packages takes a tenth of a second or more
    for module, file in (("triton", "__init__.py"), ("llvmlite", "_version.py")):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / file


def folder() -> Path | None:
    """Return FUSED_OPTIM_CACHE, or fused_optim in the user's cache; None without a home."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base, "fused_optim")
    with contextlib.suppress(RuntimeError):  # no home
        return Path.home() / ".cache" / "fused_optim"
    return None


def load(key: str) -> bytes | None:
    """Return the code of this key; None if there is no valid file."""
    directory = folder()
    if directory is None:
        return None
    try:
        if not _is_ours(directory.stat()):
            return None
        with open(
            os.open(directory / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb"
        ) as file:
            data = file.read() if _is_ours(os.fstat(file.fileno())) else b""
    except OSError:
        return None
    head = MAGIC + key.encode()
    check, code = data[len(head) : len(head) + 32], data[len(head) + 32 :]
    if data.startswith(head) and hashlib.sha256(code).digest() == check:
        return code
    return None


def store(key: str, code: bytes) -> None:
    """Store code for other processes, if the folder is writable."""
    directory = folder()
    if directory is None:
        return
    temporary = None
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(directory.stat()):
            log.info("%s belongs to another user or others may write to it: not used", directory)
            return
        handle, temporary = tempfile.mkstemp(dir=directory)
        with open(handle, "wb") as file:
            file.write(MAGIC + key.encode() + hashlib.sha256(code).digest() + code)
        # atomic: another process may store the same key at the same time
        os.replace(temporary, directory / key)
    except OSError as error:
        log.info("machine code is not stored on disk: %s", error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & OTHERS_WRITE
