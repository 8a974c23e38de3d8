"""The cache of machine code on disk: owners, damage, concurrency and warm starts.

Faults tried by hand: the checksum not compared; the key not compared; files of other users taken;
links followed; a lock that a forked child inherits; a version of llvmlite that is not in the key.
"""

import json
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from native.kernels import Case, source

from fused_optim.backends.native import cache, compiler
from fused_optim.backends.native.levels import level

# torch has threads, none of which matters to the children here
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
KEY = "0" * 63 + "1"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Set an empty cache folder, and forget the kernels in memory."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(compiler.MADE, "kernels", {})
    return tmp_path / "cache"


def test_what_is_stored_is_loaded(folder):
    assert cache.load(KEY) is None
    cache.store(KEY, b"code")
    assert cache.load(KEY) == b"code"
    assert [path.name for path in folder.iterdir()] == [KEY]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600


@pytest.mark.parametrize("at", [0, 30, 100, 130, -1])
def test_a_damaged_file_is_ignored_and_made_anew(folder, at):
    cache.store(KEY, b"code" * 100)
    data = bytearray((folder / KEY).read_bytes())
    data[at] ^= 1
    (folder / KEY).write_bytes(data)
    assert cache.load(KEY) is None
    cache.store(KEY, b"code")
    assert cache.load(KEY) == b"code"


@pytest.mark.parametrize("size", [0, 10, 91, 120])
def test_half_a_file_is_ignored(folder, size):
    cache.store(KEY, b"code")
    (folder / KEY).write_bytes((folder / KEY).read_bytes()[:size])
    assert cache.load(KEY) is None


def test_the_code_of_another_key_is_ignored(folder):
    cache.store(KEY, b"code")
    other = KEY.replace("1", "2")
    os.rename(folder / KEY, folder / other)
    assert cache.load(other) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to_is_ignored(folder, mode):
    cache.store(KEY, b"code")
    (folder / KEY).chmod(mode)
    assert cache.load(KEY) is None


def test_a_folder_that_others_may_write_to_is_not_used(folder):
    cache.store(KEY, b"code")
    folder.chmod(0o770)
    assert cache.load(KEY) is None
    cache.store(KEY.replace("1", "2"), b"code")
    assert [path.name for path in folder.iterdir()] == [KEY]


def test_files_of_another_user_are_ignored(folder, monkeypatch):
    cache.store(KEY, b"code")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert cache.load(KEY) is None


def test_a_link_is_ignored(folder, tmp_path):
    cache.store(KEY, b"code")
    os.rename(folder / KEY, tmp_path / "elsewhere")
    (folder / KEY).symlink_to(tmp_path / "elsewhere")
    assert cache.load(KEY) is None


def test_where_the_code_is_kept(monkeypatch):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.folder() == Path("/somewhere/fused_optim")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/one")
    assert cache.folder() == Path("/home/one/.cache/fused_optim")


@pytest.mark.parametrize("where", ["/proc/nowhere", "/dev/null/x"])
def test_where_nothing_can_be_written_code_lives_in_memory(monkeypatch, where):
    monkeypatch.setenv(cache.VARIABLE, where)
    kernel = made(calls := [])
    assert made(calls) is kernel
    assert calls == ["made"]


def test_without_a_home(monkeypatch):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home():
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", home)
    assert cache.folder() is None
    assert cache.load(KEY) is None
    cache.store(KEY, b"code")


def made(calls, describe="as it is"):
    """Return a kernel, compiled if need be."""
    case = Case("norm", "sgd", "fp32")

    def make_source():
        calls.append("made")
        return source(case.key, "norm")

    return compiler.compile_kernel("norm", describe, make_source, level())


def test_a_kernel_is_compiled_once(folder, monkeypatch):
    calls = []
    kernel = made(calls)
    assert made(calls) is kernel
    monkeypatch.setattr(compiler.MADE, "kernels", {})  # another process
    assert made(calls) is not kernel
    assert calls == ["made"]
    assert len(list(folder.iterdir())) == 1
    made(calls, "otherwise")
    assert calls == ["made"] * 2
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_kernel_is_compiled_anew(folder, monkeypatch):
    calls = []
    made(calls)
    (path,) = folder.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(compiler.MADE, "kernels", {})
    made(calls)
    assert calls == ["made"] * 2
    assert path.read_bytes() != data


def test_the_key_is_that_of_everything_the_code_depends_on(monkeypatch, tmp_path):
    keys = {
        cache.key("update", "x", "v3"),
        cache.key("update", "xv", "3"),
        cache.key("a", "x", "v3"),
    }
    paths = list(cache._made_from())
    names = {path.name for path in paths}
    assert {"lowering.py", "constexprs.py", "update.py", "adam.py", "codecs.py"} <= names
    assert {path.parent.name for path in paths} >= {"native", "kernels", "rules"}
    assert {"triton", "llvmlite"} <= {path.parent.name for path in paths}
    for path in paths:
        assert path.read_bytes()
    changed = tmp_path / "lowering.py"
    changed.write_bytes(b"another version")
    monkeypatch.setattr(cache, "_made_from", lambda: iter([*paths[1:], changed]))
    cache._sources.cache_clear()
    keys.add(cache.key("update", "x", "v3"))
    assert len(keys) == 4
    cache._sources.cache_clear()


def test_where_triton_and_llvmlite_say_their_versions():
    import llvmlite
    import triton

    text = {path.parent.name: path.read_text() for path in cache._made_from()}
    assert triton.__version__ in text["triton"]
    assert llvmlite.__version__ in text["llvmlite"]


STEP = """
import sys, torch, fused_optim
def step(forgets=()):
    p = torch.nn.Parameter(torch.arange(100.0))
    p.grad = torch.ones(100)
    optimizer = fused_optim.AdamW([p], backend="native", max_grad_norm=1.0)
    # torch has imported triton, as it does where any optimizer is made
    for name in [name for name in sys.modules if name.partition(".")[0] in forgets]:
        del sys.modules[name]
    optimizer.step()
    return [p.sum().item(), optimizer.backend_used, *({*forgets} & {*sys.modules})]
"""


def test_a_step_with_all_code_on_disk_needs_no_compiler(folder):
    """Guard against an import of triton or llvmlite where all code is on disk."""
    names = {}
    exec(STEP, names)
    compiled = names["step"]()
    assert len(list(folder.iterdir())) == 3
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    code = f"{STEP}\nimport json\nprint(json.dumps(step(('triton', 'llvmlite'))))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == compiled
    assert compiled[1] == "native"
    assert len(list(folder.iterdir())) == 3


def racing(barrier, connection):
    barrier.wait()
    calls = []
    made(calls)
    connection.send((calls, [path.name for path in cache.folder().iterdir()]))


@FORKS
def test_eight_processes_at_once(folder):
    """Guard against readers that see half a file while eight processes compile."""
    context = multiprocessing.get_context("fork")
    barrier, ends, processes = context.Barrier(8), [], []
    for _ in range(8):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=racing, args=(barrier, theirs)))
        processes[-1].start()
        ends.append(ours)
    for end, one in zip(ends, processes, strict=True):
        assert end.poll(120)
        calls, names = end.recv()
        assert calls in ([], ["made"])
        assert any(len(name) == 64 for name in names)
        one.join()
    (path,) = folder.iterdir()
    assert cache.load(path.name) is not None
    made(calls := [])
    assert calls == []


def child(connection):
    calls = []
    kernel = made(calls, "in the child")
    connection.send((kernel.address != 0, calls))


@FORKS
def test_a_child_compiles_though_a_thread_of_its_parent_held_the_lock():
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    held, done = threading.Event(), threading.Event()

    def hold():
        with compiler.MADE.lock:
            held.set()
            done.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    process = context.Process(target=child, args=(theirs,))
    process.start()
    done.set()
    other.join()
    try:
        assert ours.poll(20), "the child waits for a lock that nobody holds"
        assert ours.recv() == (True, ["made"])
    finally:
        process.kill()
        process.join()
