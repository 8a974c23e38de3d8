"""The machine code of every level: no fused operation, no call, whole vectors, nothing foreign.

It is read as LLVM writes it, for levels too that this machine does not have; and as objdump reads
the finished image, where there is one. Faults tried by hand: products and sums that may be
contracted; "no-builtins" left out; vectors of at most 256 bits; relocations that are not applied,
or to the wrong bits; float16 by an instruction on x86-64-v2; addresses loaded anew for each block.
"""

import re
import shutil
import struct
import subprocess
from functools import cache

import pytest
from native.kernels import Case, ir, module, some, text

from fused_optim.backends.native.codegen import LEVELS, make_assembly, make_code
from fused_optim.backends.native.elf import NotIndependent
from fused_optim.backends.native.ttir import parse

FUSED = re.compile(r"^v?f(n?m(add|sub)\w*|n?ml[as]l?\d?|maddsub\w*|msubadd\w*)$")
BRANCHES = re.compile(r"^(j\w+|b|b\.\w+|cbn?z|tbn?z)$")
CALLS = re.compile(r"^(call\w*|blr?|br|syscall|svc)$")
# the loads and stores of whole registers
VECTORS = {
    "x86-64-v2": re.compile(r"^\s*(movup[sd]|movdqu|pmov[sz]x\w+)\s.*%xmm", re.MULTILINE),
    "x86-64-v3": re.compile(r"^\s*v\w+\s.*\(%r\w+.*\).*%ymm|^\s*vmov\w+\s+%ymm", re.MULTILINE),
    "x86-64-v4": re.compile(r"^\s*v\w+\s.*\(%r\w+.*\).*%zmm|^\s*vmov\w+\s+%zmm", re.MULTILINE),
    "aarch64": re.compile(r"^\s*(ldp|ldr|stp|str|ldur|stur)\s+q", re.MULTILINE),
}


@cache
def assembly(case, level):
    return make_assembly(ir(parse(text(case)), level), level)


def instructions(listing):
    """Yield the mnemonic and operands of every instruction."""
    for line in listing.splitlines():
        result = re.match(r"\t(?:lock\t+|rep\w*\t+)?([a-z][\w.]*)(?:\s+(.*))?$", line)
        if result and not result[1].startswith("."):
            yield result[1], result[2] or ""


PLAIN = ("fp32", "bf16", "fp16", "fp64", "fp32-int8")
# those dtypes on every level, whose conversions differ, and the other kernels on one in turn
LISTINGS = [
    pytest.param(case, level, id=f"{case}-{level}")
    for i, case in enumerate(some())
    for j, level in enumerate(LEVELS)
    if case in [Case("update", "adam", name) for name in PLAIN] or (i - j) % len(LEVELS) == 0
]


@pytest.mark.parametrize(("case", "level"), LISTINGS)
def test_nothing_is_fused_and_nothing_is_called(case, level):
    count = 0
    for mnemonic, operands in instructions(assembly(case, level)):
        count += 1
        assert not FUSED.match(mnemonic), f"{mnemonic} {operands}"
        assert not CALLS.match(mnemonic), f"{mnemonic} {operands}"
        if BRANCHES.match(mnemonic):
            assert ".L" in operands, f"{mnemonic} {operands}"
    assert count > 50


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", PLAIN)
def test_the_full_path_has_whole_vectors(name, level):
    """Guard against vectors put together by elements: at least seven full-width accesses."""
    listing = assembly(Case("update", "adam", name), level)
    assert len(VECTORS[level].findall(listing)) >= 7
    single = re.findall(r"^\s*v?(?:pinsr|pextr|insertps|ins\s).*", listing, re.MULTILINE)
    assert len(single) <= 8, single  # of the scales, which are one element a block


def test_512_bits_are_only_in_the_code_that_has_them():
    case = Case("update", "adam", "fp32")
    widths = {level: re.findall(r"%([xyz])mm", assembly(case, level)) for level in LEVELS}
    assert "z" in widths["x86-64-v4"]
    assert {*widths["x86-64-v3"]} == {"x", "y"}
    assert {*widths["x86-64-v2"]} == {"x"}


WHOLE = r"\tvmovups\t%zmm\d+, [^{]*\(%r(?!sp)[^{]*$"  # a store without a mask, not to the stack


def inner_loop(listing):
    """Return the instructions of a block without L1 and L2 terms, in execution order."""
    lines = [line for line in listing.splitlines() if not re.match(r"\t\.|#", line)]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    stores = [i for i, line in enumerate(lines) if re.match(WHOLE, line)]
    start = max(at for at in labels.values() if at < stores[0])
    result, at = [], start
    while not result or at != start:
        line = lines[at]
        mnemonic, operand = [*line.strip().split(maxsplit=1), ""][:2]
        if not line.endswith(":"):
            result.append(line.strip())
        # the loop goes on; a comparison with 0 says equal, and so not unordered
        at = labels[operand] if mnemonic in ("jmp", "jnp", "je") else at + 1
        assert len(result) < 1000
    return result


def test_adamw_takes_few_instructions():
    """Guard against more than 31 vector instructions for each register.

    The other 2 loads are part of products. What L1 and L2 would add is behind jumps; scalars and
    addresses stay in registers.
    """
    loop = inner_loop(assembly(Case("update", "adam", "fp32"), "x86-64-v4"))
    vectors = [line for line in loop if re.search("zmm", line)]
    roots = sum("vsqrtps" in line for line in vectors)
    assert roots >= 1
    assert sum("vmovups" in line for line in vectors) <= 5 * roots
    assert len(vectors) <= 31 * roots + 2  # two constants
    assert not [line for line in vectors if "%rsp" in line]
    assert len(loop) - len(vectors) <= 12, [line for line in loop if "zmm" not in line]


@pytest.mark.skipif(
    shutil.which("objdump") is None,
    reason="objdump (binutils) is not installed",
)
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("kernel", ["norm", "prepare", "update", "reduce", "finalize"])
def test_the_image_stays_in_itself(kernel, level, tmp_path):
    """Guard against jumps and constants outside the finished bytes."""
    case = Case(kernel, "lamb", "fp32-int8" if kernel == "update" else "fp32")
    image = make_code(ir(parse(text(case)), level), kernel, level)
    path = tmp_path / "image"
    path.write_bytes(image.code)
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn", path]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = listing[listing.index(f"{image.entry:x}:") : listing.rindex("ret") + 3]
    constants = [int(address, 16) for address in re.findall(r"\(%rip\).*# 0x([0-9a-f]+)", code)]
    jumps = [int(address, 16) for address in re.findall(r"\tj\w+\s+0x([0-9a-f]+)", code)]
    last = int(re.findall(r"^\s*([0-9a-f]+):\t.*$", code, re.MULTILINE)[-1], 16)
    assert len(jumps) > 5
    assert all(image.entry <= address <= last for address in jumps)
    assert all(last < address < len(image.code) for address in constants)
    assert kernel in ("norm", "finalize") or len(constants) > 1


@pytest.mark.parametrize("kernel", ["prepare", "update"])
def test_the_constants_of_aarch64_are_found(kernel):
    """Guard against ADRP pairs that do not reach the constants behind the code."""
    case = Case(kernel, "adam", "fp32-int8" if kernel == "update" else "fp32")
    listing = assembly(case, "aarch64")
    image = make_code(ir(parse(text(case)), "aarch64"), kernel, "aarch64")
    words = [word for (word,) in struct.iter_unpack("<I", image.code[: len(image.code) // 4 * 4])]
    pages, addresses = {}, []
    for at, word in enumerate(words):
        if word & 0x9F000000 == 0x90000000:  # adrp
            distance = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            distance -= (distance & 1 << 20) << 1
            pages[word & 31] = at * 4 // 4096 * 4096 + distance * 4096
        elif word & 0x3F000000 == 0x3D000000 and word >> 5 & 31 in pages:  # ldr of a vector
            size = (word >> 30 & 3) | (word >> 23 & 1) << 2
            addresses.append(pages.pop(word >> 5 & 31) + ((word >> 10 & 0xFFF) << size))
    end = max(i for i, word in enumerate(words) if word == 0xD65F03C0) * 4  # ret
    assert len(addresses) >= len(re.findall(r":lo12:", listing)) // 2 > 0
    assert all(end < address < len(image.code) for address in addresses)


def test_a_call_of_a_library_is_refused_by_name():
    body = """
    %0 = tt.load %a : !tt.ptr<f32>
    %1 = math.sqrt %0 : f32
    tt.store %a, %1 : !tt.ptr<f32>"""
    good = ir(parse(module(body, "%a: !tt.ptr<f32>")), "x86-64-v2")
    make_code(good, "kernel", "x86-64-v2")
    with pytest.raises(NotIndependent, match="sinf"):
        make_code(good.replace("llvm.sqrt", "llvm.sin"), "kernel", "x86-64-v2")


@pytest.mark.parametrize("sort", ["global i32 7", "constant ptr @other"])
def test_memory_of_its_own_is_refused(sort):
    """Guard against code with writable data or absolute addresses."""
    good = ir(parse(module("", "%a: !tt.ptr<f32>")), "x86-64-v2")
    extra = f"@own = {sort}\n@other = global i32 7\n"
    with pytest.raises(NotIndependent, match=r"own|to write to|depend on where"):
        make_code(extra + good, "kernel", "x86-64-v2")


def test_the_code_is_the_same_each_time():
    function = text(Case("update", "adam", "fp32"))
    one, two = (make_code(ir(parse(function), "x86-64-v3"), "update", "x86-64-v3") for _ in "ab")
    assert one == two
