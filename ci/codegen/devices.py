"""Published data of GPUs: limits of a multiprocessor, and memory bandwidths."""

import math
from typing import NamedTuple


class Multiprocessor(NamedTuple):
    """Limits of one multiprocessor.

    Attributes:
        warps: most resident warps.
        blocks: most resident blocks.
        shared: bytes of shared memory.
    """

    warps: int
    blocks: int
    shared: int


# CUDA C++ Programming Guide 12.9, section "Features and Technical Specifications", the table
# "Technical Specifications per Compute Capability". Each has 65536 registers, which a warp takes
# in units of 256, and keeps 1 KiB of shared memory a block for itself.
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164 << 10),
    "sm_86": Multiprocessor(48, 16, 100 << 10),
    "sm_89": Multiprocessor(48, 24, 100 << 10),
    "sm_90": Multiprocessor(64, 32, 228 << 10),
    "sm_100": Multiprocessor(64, 32, 228 << 10),
    "sm_120": Multiprocessor(48, 24, 100 << 10),
}
REGISTERS, UNIT, RESERVED = 65536, 256, 1024
# most waves of a SIMD: LLVM's "User Guide for AMDGPU Backend"; how many of them the registers
# leave is what the compiler remarks
WAVES = {"gfx90a": 8, "gfx942": 8, "gfx1100": 16}


class Device(NamedTuple):
    """A GPU.

    Attributes:
        target: name of the compilation target.
        bandwidth: memory bandwidth in bytes per second.
        source: data sheet of the bandwidth.
    """

    target: str
    bandwidth: float
    source: str


DEVICES = {
    "A100": Device("sm_80", 2.039e12, "NVIDIA A100 80GB SXM data sheet: 2,039 GB/s"),
    "H100": Device("sm_90", 3.35e12, "NVIDIA H100 SXM data sheet: 3.35 TB/s"),
    "H200": Device("sm_90", 4.8e12, "NVIDIA H200 SXM data sheet: 4.8 TB/s"),
    "B200": Device("sm_100", 8.0e12, "NVIDIA DGX B200 data sheet: 64 TB/s for 8 GPUs"),
    "MI300X": Device("gfx942", 5.3e12, "AMD Instinct MI300X data sheet: 5.3 TB/s"),
}


def occupancy(target: str, registers: int, shared: int, threads: int) -> float:
    """Return resident warps as a fraction of the most that a multiprocessor of NVIDIA can hold.

    Args:
        target: key of ``MULTIPROCESSORS``.
        registers: 32-bit registers per thread.
        shared: bytes of shared memory per block.
        threads: threads per block.
    """
    limits = MULTIPROCESSORS[target]
    warps = threads // 32
    by_registers = REGISTERS // (math.ceil(registers * 32 / UNIT) * UNIT) // warps
    by_shared = limits.shared // (shared + RESERVED)
    return min(limits.blocks, limits.warps // warps, by_registers, by_shared) * warps / limits.warps


def roofline(bytes_per_element: float, device: Device, elements: float = 1e9) -> float:
    """Return the seconds that the memory needs to move the bytes: a bound, not a measurement."""
    return bytes_per_element * elements / device.bandwidth
