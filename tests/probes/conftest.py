"""Readiness is tested on real containers: the fixtures of the engine tests."""

from __future__ import annotations

from tests.engines.conftest import machine, registry, small_machine

__all__ = ["machine", "registry", "small_machine"]
