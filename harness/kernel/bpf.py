"""This module writes BPF programs of the few instructions ours need, loads them, and attaches them to a control group.

Sources: bpf(2); Linux, Documentation/bpf/standardization/instruction-set.rst, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHED_CLS, CGROUP_DEVICE = 3, 15
"""These are kinds of programs: traffic classifier, device list."""

_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361}
_PROG_LOAD, _PROG_ATTACH = 5, 8
_ATTACH_CGROUP_DEVICE = 6
_LOG_BYTES = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


def _instruction(opcode: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, value if value < 1 << 31 else value - (1 << 32))


def load(target: int, source: int, offset: int) -> bytes:
    """Writes ``target = *(u32 *)(source + offset)``."""
    return _instruction(0x61, target, source, offset)


def load_packet(size: int, offset: int, register: int | None = None) -> bytes:
    """Writes ``r0`` = ``size`` bytes of the packet, in host order, at ``offset`` (plus a register); a short packet ends
    it.

    Register 6 has to hold the context.
    """
    width = {1: 0x10, 2: 0x08, 4: 0x00}[size]
    return _instruction((0x20 if register is None else 0x40) | width, 0, register or 0, 0, offset)


def copy(target: int, source: int) -> bytes:
    """Writes ``target = source``, 64 bits."""
    return _instruction(0xBF, target, source)


def mask(target: int, value: int) -> bytes:
    """Writes ``target &= value``, 32 bits."""
    return _instruction(0x54, target, value=value)


def shift_left(target: int, bits: int) -> bytes:
    return _instruction(0x64, target, value=bits)


def shift_right(target: int, bits: int) -> bytes:
    return _instruction(0x74, target, value=bits)


def give(value: int) -> bytes:
    """Writes ``return value``."""
    return _instruction(0xB7, 0, value=value) + _instruction(0x95)


def return_if_zero(register: int, value: int) -> bytes:
    """Writes ``if (register == 0) return value``."""
    return _instruction(0x55, register, offset=2, value=0) + give(value)


class Test(NamedTuple):
    """Tests whether the lower 32 bits of a register have this value."""

    register: int
    value: int


def when(tests: Sequence[Test], body: bytes) -> bytes:
    """Makes ``body`` run when all tests hold, and the program go on behind it when one does not."""
    for test in reversed(tests):
        body = _instruction(0x56, test.register, offset=len(body) // 8, value=test.value) + body  # jne32
    return body


def unless(test: Test, body: bytes) -> bytes:
    """Makes ``body`` run when the test does not hold, and the program go on behind it when it does."""
    return _instruction(0x16, test.register, offset=len(body) // 8, value=test.value) + body  # jeq32


def _call(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = _CALL.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf(2) on {platform.machine()} is not known here")
    result = int(_libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def load_program(kind: int, code: bytes, name: str) -> int:
    """Loads the program and returns its descriptor. Raises OSError, with the verifier's last words, when the kernel
    refuses it.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    words = ctypes.create_string_buffer(b"GPL\0")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    addresses = [ctypes.addressof(buffer) for buffer in (instructions, words, log)]
    short = struct.pack("<IIQQIIQII16s", kind, len(code) // 8, addresses[0], addresses[1], 0, 0, 0, 0, 0, name.encode())
    try:
        return _call(_PROG_LOAD, short)
    except OSError as error:
        told = struct.pack(
            "<IIQQIIQII16s", kind, len(code) // 8, addresses[0], addresses[1], 1, _LOG_BYTES, addresses[2], 0, 0,
            name.encode(),
        )  # fmt: skip
        try:
            return _call(_PROG_LOAD, told)
        except OSError:
            said = log.value.decode(errors="replace").strip().splitlines()[-2:]
            raise OSError(error.errno, f"{error.strerror} {' '.join(said)}".strip()) from None


def attach_to_group(group: str, program: int) -> None:
    """Makes a device list hold for a version 2 control group, as long as that exists. Raises OSError when refused."""
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _call(_PROG_ATTACH, struct.pack("<IIII", directory, program, _ATTACH_CGROUP_DEVICE, 0))
    finally:
        os.close(directory)
