"""This module gives rights up, for good: capabilities, the right to gain any by executing, and system calls.

Sources: capabilities(7), capget(2), prctl(2); Linux, Documentation/userspace-api/no_new_privs.rst, seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, argument: int, what: str, third: int = 0) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(third), zero, zero), what)


def last_capability() -> int:
    """Returns the highest capability number this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def own_capabilities() -> frozenset[int]:
    """Returns the numbers of what this process may use and hand on: in a container root does not have all."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    held = int(fields["CapPrm"], 16) & int(fields["CapBnd"], 16)
    return frozenset(number for number in range(held.bit_length()) if held >> number & 1)


def keep_capabilities(numbers: Collection[int], last: int) -> None:
    """Keeps these capabilities and no others, now and after any exec. ``last`` is ``last_capability()``."""
    for number in range(last + 1):
        if number not in numbers:
            _prctl(_PR_CAPBSET_DROP, number, "prctl(PR_CAPBSET_DROP)")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, "prctl(PR_CAP_AMBIENT)")
    wanted = sum(1 << number for number in numbers if number <= last)
    header = _Header(_CAPABILITY_VERSION, 0)
    sets = (_Sets * 2)(*(_Sets(wanted >> shift & 0xFFFFFFFF, wanted >> shift & 0xFFFFFFFF, 0) for shift in (0, 32)))
    _check(_libc.capset(ctypes.byref(header), sets), "capset")


def refuse_new_privileges() -> None:
    """Makes sure that no program executed from now on gains anything by its set-user-ID bit or file capabilities."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "prctl(PR_SET_NO_NEW_PRIVS)")


def hide_from_others() -> None:
    """Keeps everybody without CAP_SYS_PTRACE from tracing this process or opening what it has open, through /proc or
    otherwise.
    """
    _prctl(_PR_SET_DUMPABLE, 0, "prctl(PR_SET_DUMPABLE)")


def filter_system_calls(program: bytes) -> None:
    """Puts a seccomp filter in force, for this process and all that it starts (``harness.kernel.seccomp``)."""
    instructions = ctypes.create_string_buffer(program, len(program))
    described = _FilterProgram(len(program) // 8, ctypes.cast(instructions, ctypes.c_void_p).value)
    address = ctypes.cast(ctypes.byref(described), ctypes.c_void_p).value or 0
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, "prctl(PR_SET_SECCOMP)", address)
