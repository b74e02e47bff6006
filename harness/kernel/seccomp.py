"""This module makes the filter program that the kernel takes out of a seccomp profile as an OCI bundle has it.

libseccomp knows the numbers of system calls; container runtimes use it, so it is there where containers run. Sources:
OCI runtime spec 1.0, config-linux.md (Seccomp); seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3).
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from harness.errors import MissingTool

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_OPERATORS = {"SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5,
              "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7}  # fmt: skip
_ARCHITECTURES = {
    "SCMP_ARCH_X86": 0x40000003, "SCMP_ARCH_X86_64": 0xC000003E, "SCMP_ARCH_X32": 0x4000003E,
    "SCMP_ARCH_ARM": 0x40000028, "SCMP_ARCH_AARCH64": 0xC00000B7, "SCMP_ARCH_PPC64LE": 0xC0000015,
    "SCMP_ARCH_S390": 0x16, "SCMP_ARCH_S390X": 0x80000016, "SCMP_ARCH_RISCV64": 0xC00000F3,
}  # fmt: skip
_UNKNOWN_CALL = -1
_EEXIST, _EDOM = 17, 33


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("first", ctypes.c_uint64), ("second", ctypes.c_uint64)
    )  # fmt: skip


def compile_profile(profile: Mapping[str, Any]) -> bytes:
    """Returns the program, eight bytes an instruction.

    Raises MissingTool without libseccomp, OSError when it refuses a rule.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise MissingTool("libseccomp is not installed; install it with: apt-get install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO | int(profile["defaultErrnoRet"]))))
    try:
        for name in profile["architectures"]:
            result = library.seccomp_arch_add(context, ctypes.c_uint32(_ARCHITECTURES[name]))
            if result not in (0, -_EEXIST):
                raise OSError(-result, f"seccomp_arch_add {name}: {os.strerror(-result)}")
        for rule in profile["syscalls"]:
            for name in rule["names"]:
                _add(library, context, name, rule)
        with open(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
            result = library.seccomp_export_bpf(context, ctypes.c_int(file.fileno()))
            if result:
                raise OSError(-result, f"seccomp_export_bpf: {os.strerror(-result)}")
            file.seek(0)
            return file.read()
    finally:
        library.seccomp_release(context)


def _add(library: ctypes.CDLL, context: ctypes.c_void_p, name: str, rule: Mapping[str, Any]) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == _UNKNOWN_CALL:  # newer than this libseccomp: refused like all that is not named
        return
    comparisons = [
        _Comparison(arg["index"], _OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
        for arg in rule.get("args", ())
    ]
    action = _ALLOW if rule["action"] == "SCMP_ACT_ALLOW" else _ERRNO | int(rule["errnoRet"])
    array = (_Comparison * max(1, len(comparisons)))(*comparisons)
    result = library.seccomp_rule_add_array(
        context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(comparisons)), array
    )
    if result not in (0, -_EDOM, -_EEXIST):  # EDOM: no architecture here has it
        raise OSError(-result, f"seccomp_rule_add {name}: {os.strerror(-result)}")
