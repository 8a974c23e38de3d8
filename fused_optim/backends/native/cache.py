"""Machine code on disk, so that a program that has run before needs no compiler.

A file holds a magic word, the key, a checksum and the code. One that does not belong to this user,
that others may write to, or that is not what it should be is ignored and made anew. Where nothing
can be written, code lives as long as the process.
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
    """Return the name of the code for what ``parts`` describe: 64 hexadecimal digits.

    It depends on the sources of kernels and backend, and on the versions of triton and llvmlite.
    """
    found = hashlib.sha256(MAGIC + _sources())
    for part in parts:
        found.update(f"{len(part)}:{part}".encode())
    return found.hexdigest()


@cache
def _sources() -> bytes:
    """Return a digest of everything that makes code, read once a process."""
    found = hashlib.sha256()
    for path in _made_from():
        text = path.read_bytes()
        found.update(f"{path.name}:{len(text)}:".encode() + text)
    return found.digest()


def _made_from() -> Iterator[Path]:
    for folder in (PACKAGE, PACKAGE.parent):
        yield from sorted(folder.glob("*.py"))
    yield from sorted(KERNELS.rglob("*.py"))
    # where each says its version; to import them takes a tenth of a second and more
    for module, page in (("triton", "__init__.py"), ("llvmlite", "_version.py")):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin).parent / page


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
    """Return the code of this key; None if there is none that can be trusted."""
    place = folder()
    if place is None:
        return None
    try:
        if not _is_ours(place.stat()):
            return None
        with open(os.open(place / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            data = file.read() if _is_ours(os.fstat(file.fileno())) else b""
    except OSError:
        return None
    head = MAGIC + key.encode()
    check, code = data[len(head) : len(head) + 32], data[len(head) + 32 :]
    if data.startswith(head) and hashlib.sha256(code).digest() == check:
        return code
    return None


def store(key: str, code: bytes) -> None:
    """Keep code for the next process, if it can be written."""
    place = folder()
    if place is None:
        return
    temporary = None
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(place.stat()):
            log.info("%s belongs to another user or others may write to it: not used", place)
            return
        handle, temporary = tempfile.mkstemp(dir=place)
        with open(handle, "wb") as file:
            file.write(MAGIC + key.encode() + hashlib.sha256(code).digest() + code)
        # another process may do the same now: either file is whole
        os.replace(temporary, place / key)
    except OSError as error:
        log.info("machine code is not kept on disk: %s", error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE
