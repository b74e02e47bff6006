"""``coldbench shapes``, ``doctor`` and ``clean`` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from harness.machine import cgroup, checks, host, rates
from harness.machine.checks import Check
from harness.model.bound import Rates

if TYPE_CHECKING:
    from pathlib import Path


def coldbench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, its output and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.files
def test_shapes_lists_every_figure() -> None:
    """The table names each shape in each form with its figures, however narrow the terminal; JSON has the sources."""
    said = coldbench("shapes", COLUMNS="40").stdout
    line = next(line for line in said.splitlines() if "aws-t2.micro:fresh" in line)
    figures = "1 0.1 1 1800 s 360 s 8640 s 1 GiB 0.064/1.024 Gbit/s -"
    assert line.split() == ["*", "aws-t2.micro:fresh", *figures.split()]
    data = json.loads(coldbench("shapes", "--json").stdout)
    assert {"none", "near", "far", "slow"} == {d["name"] for d in data["distances"]}
    assert sum(s["default"] for s in data["shapes"]) == len({s["name"] for s in data["shapes"]})


@pytest.mark.files
def test_wrong_shape_is_a_usage_error() -> None:
    """A misspelt shape ends in one line and exit code 2."""
    said = coldbench("shapes", "aws-t2.mirco")
    assert said.returncode == 2
    assert said.stderr == "coldbench: unknown shape 'aws-t2.mirco'; did you mean aws-t2.micro or aws-t3.micro?\n"


@pytest.mark.root
def test_doctor_finds_this_host_fit(tmp_path: Path) -> None:
    """With all that the tests need installed no check fails, facts and measured rates come as JSON, and rates stay."""
    said = coldbench("doctor", "--rates", "--json", XDG_CACHE_HOME=str(tmp_path))
    assert said.stdout, said.stderr
    data: dict[str, Any] = json.loads(said.stdout)
    assert [c for c in data["checks"] if c["level"] == "fail"] == []
    assert said.returncode == 0
    assert data["host"]["cgroup_version"] in (1, 2)
    assert data["rates"]["inflate_bytes_s"] > 1e7
    again = json.loads(coldbench("doctor", "--json", XDG_CACHE_HOME=str(tmp_path)).stdout)
    assert again["rates"] == data["rates"]


@pytest.mark.root
def test_clean_finds_nothing_after_itself() -> None:
    """A second clean has nothing to do, and lists as JSON."""
    coldbench("clean")
    said = coldbench("clean", "--dry-run", "--json")
    assert (said.returncode, json.loads(said.stdout)) == (0, [])


def test_what_is_missing_comes_with_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finding that is not fine says what to do: not root, a tool that is missing, a noisy host."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host, "find_tool", lambda _name: None)
    facts = host.HostFacts(
        kernel="6.1", machine="x86_64", cpu_model="x", cores=1, memory_bytes=1, virtualised=True, cgroup_version=1,
        file_systems=(), tools={}, steal_share=0.2, load_per_core=3.0, governor="powersave", git_commit="",
    )  # fmt: skip
    found = {check.name: check for check in checks.run_checks(facts)}
    assert found["root"] == Check("root", "fail", "no", "run this with sudo")
    assert found["container runtime"].mend == "apt-get install crun"
    assert {found[name].level for name in ("steal", "load", "cores", "governor")} == {"warn"}
    assert [check.name for check in found.values() if check.level != "ok" and not check.mend] == []


def test_doctor_says_what_is_done_about_crun_on_hybrid_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """crun refuses hosts where version 2 holds controllers beside version 1; one that does not run at all fails."""
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n", "ascii")
    mounts = cgroup.CgroupMounts({"cpu": tmp_path, "memory": tmp_path}, tmp_path)
    monkeypatch.setattr(cgroup, "find_mounts", lambda: mounts)
    monkeypatch.setattr(host, "find_tool", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(host, "tool_version", lambda name: f"{name} version 1.8.1")
    found = {check.name: check for check in checks._tools()}["container runtime"]
    assert (found.level, found.found) == ("ok", "crun version 1.8.1")
    assert "hugetlb" in found.mend
    monkeypatch.setattr(host, "tool_version", lambda _name: "does not run")
    assert {check.name: check.level for check in checks._tools()}["container runtime"] == "fail"


def test_rates_of_another_host_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stored rates hold for the CPU model and kernel they were measured on; a broken file is as none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rates.load() is None
    rates.cache_file().parent.mkdir()
    rates.cache_file().write_text("{")
    assert rates.load() is None
    known = {
        "inflate_bytes_s": 1e9, "inflate_zstd_bytes_s": 1e9, "hash_bytes_s": 1e9, "receive_core_s_per_byte": 1e-10,
        "write_core_s_per_byte": 1e-10, "create_core_s": 1e-5,
    }  # fmt: skip
    rates.cache_file().write_text(json.dumps(known | {"host": "another"}))
    assert rates.load() is None
    rates.cache_file().write_text(json.dumps(known | {"host": rates.host_key()}))
    assert rates.load() is not None


def test_repeated_rates_keep_the_best() -> None:
    """A second measurement can only make the bound's rates better."""
    first = Rates(
        inflate_bytes_s=10, inflate_zstd_bytes_s=10, hash_bytes_s=10, receive_core_s_per_byte=2,
        write_core_s_per_byte=2, create_core_s=2,
    )  # fmt: skip
    second = first.model_copy(update={"inflate_bytes_s": 12.0, "hash_bytes_s": 8.0, "create_core_s": 1.0})
    best = rates._better(first, second)
    assert (best.inflate_bytes_s, best.hash_bytes_s, best.create_core_s) == (12, 10, 1)
    assert best.receive_core_s_per_byte == 2
