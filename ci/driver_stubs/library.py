"""Compilation and loading of a stub library, and delivery of its launches to Python."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triton.runtime.cache import get_cache_manager

_HERE = Path(__file__).parent
_REASON = 800  # REASON_SIZE of state.h


class RawLaunch(ctypes.Structure):
    """The C struct ``launch_t`` of state.h."""

    _fields_ = (
        ("function", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
        ("current_device", ctypes.c_int32),
        ("function_device", ctypes.c_int32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("attributes", ctypes.c_uint32),
        ("parameters", ctypes.POINTER(ctypes.c_void_p)),
    )


_Receiver = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(RawLaunch), ctypes.POINTER(ctypes.c_char))


def c_compiler() -> str | None:
    """Return the path of the C compiler that Triton selects, or None."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def build(source: str, soname: str, other: str, include: Path, **macros: int | str) -> Path:
    """Compile a stub, unless Triton's cache has it, and return the path of the file ``soname``.

    Args:
        source: name of the C file in this folder.
        soname: name of the vendor's library.
        other: second name of the file, by which Triton looks it up.
        include: folder of the vendor's headers.
        macros: constants of the C file.

    Raises:
        RuntimeError: there is no C compiler, or the compilation fails.
    """
    compiler = c_compiler()
    if compiler is None:
        raise RuntimeError(f"{soname} needs a C compiler: neither clang nor gcc is there, nor CC")
    flags = [f"-D{name}={value}" for name, value in macros.items()]
    flags += ["-shared", "-fPIC", "-O1", f"-I{_HERE}", f"-I{include}", f"-Wl,-soname,{soname}"]
    texts = [(_HERE / name).read_text() for name in (source, "state.h")]
    key = hashlib.sha256("\0".join([compiler, *flags, *texts]).encode()).hexdigest()
    cache = get_cache_manager(key)
    found = cache.get_file(soname)
    if found is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / soname
            command = [compiler, str(_HERE / source), *flags, "-o", str(path)]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                raise RuntimeError(f"{compiler} cannot compile {source}:\n{made.stderr}")
            cache.put(path.read_bytes(), other, binary=True)
            found = cache.put(path.read_bytes(), soname, binary=True)
    return Path(found)


class Library:
    """A stub library, loaded for the rest of the process.

    Attributes:
        path: path of the file.
        kernels: compiled kernels by their binary.
        functions: loaded kernels by their function handle.
        error: exception of the last launch, or None.

    Args:
        path: path of the file, from :func:`build`.
        receive: function that is called with each launch.

    Raises:
        RuntimeError: another library of this name is loaded in this process.
    """

    def __init__(self, path: Path, receive: Callable[[RawLaunch], None]) -> None:
        try:
            # a loaded library is found by its soname
            ctypes.CDLL(path.name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            pass
        else:
            raise RuntimeError(f"the real {path.name} is loaded in this process: use another one")
        self.path, self._receive = path, receive
        self.kernels: dict[bytes, Any] = {}
        self.functions: dict[int, Any] = {}
        self.error: BaseException | None = None
        self._native = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self._receiver = _Receiver(self._take)  # referenced as long as the library may call it
        self._native.stub_set_receiver(self._receiver)

    def _take(self, launch: Any, reason: Any) -> int:
        try:
            self._receive(launch.contents)
        # ctypes drops every exception of a callback, also that of Ctrl-C or pytest.fail:
        # Launcher raises Triton's error from it
        except BaseException as error:  # noqa: BLE001
            self.error = error
            text = f"{type(error).__name__}: {error}".encode()[: _REASON - 1] + b"\0"
            ctypes.memmove(reason, text, len(text))
            return 1
        return 0

    @property
    def device(self) -> int | None:
        """Return the number of this thread's current device, or None if none was set."""
        found: int = self._native.stub_get_device()
        return None if found < 0 else found

    @device.setter
    def device(self, device: int | None) -> None:
        self._native.stub_set_device(-1 if device is None else device)
