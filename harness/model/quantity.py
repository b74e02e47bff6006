"""This module reads quantities as users write them: ``1G``, ``250m``, ``1Gbit``, ``25MB/s``, ``10ms``.

A ``ValueError`` states the form that was expected."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z/]*)")

_BYTES = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _BYTES |= {_letter: 1024**_power, f"{_letter}IB": 1024**_power, f"{_letter}B": 1024**_power}

_BITS = {"BIT": 1.0, "KBIT": 1e3, "MBIT": 1e6, "GBIT": 1e9, "KB": 8e3, "MB": 8e6, "GB": 8e9, "MIB": 8.0 * 2**20}
_SECONDS = {"S": 1.0, "MS": 1e-3, "US": 1e-6}


def _split(text: str, expected: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not {expected}")
    return float(match[1]), match[2]


def number(text: str) -> float:
    """Reads cores or core-seconds: ``0.25``, ``250m`` (thousandths, as Kubernetes writes CPU)."""
    value, unit = _split(text, "a number such as 0.25 or 250m")
    if unit not in ("", "m", "s"):
        raise ValueError(f"'{text}' is not a number such as 0.25 or 250m")
    result = value / 1000 if unit == "m" else value
    if not math.isfinite(result):
        raise ValueError(f"'{text}' is not a finite number")
    return result


def integer(text: str) -> int:
    """Reads a whole number."""
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"'{text}' is not a whole number")
    return int(text)


def byte_count(text: str) -> int:
    """Reads bytes: ``512M``, ``1G``, ``1GiB``; units are powers of 1024, as Docker's ``--memory`` takes them."""
    expected = "a size such as 512M or 1G"
    value, unit = _split(text, expected)
    if unit.upper() not in _BYTES:
        raise ValueError(f"'{text}' is not {expected}")
    return round(value * _BYTES[unit.upper()])


def bits_per_s(text: str) -> int:
    """Reads a rate: ``1Gbit``, ``100Mbit``, ``3MB/s`` (decimal units); the unit must be there, bits and bytes differ by
    8.
    """
    expected = "a rate such as 1Gbit, 100Mbit or 3MB/s"
    value, unit = _split(text, expected)
    key = unit.upper().removesuffix("/S").removesuffix("PS")
    if key not in _BITS:
        raise ValueError(f"'{text}' is not {expected}")
    return round(value * _BITS[key])


def bytes_per_s(text: str) -> int:
    """Reads a rate in bytes per second, written as for ``bits_per_s``."""
    return bits_per_s(text) // 8


def seconds(text: str) -> float:
    """Reads a duration: ``10ms``, ``1s``, ``80us``; the unit must be there."""
    expected = "a duration such as 10ms or 1s"
    value, unit = _split(text, expected)
    if unit.upper() not in _SECONDS:
        raise ValueError(f"'{text}' is not {expected}")
    return value * _SECONDS[unit.upper()]
