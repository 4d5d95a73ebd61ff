from __future__ import annotations

import pytest

from hasten.measure.energy import Counter, joules_between, read_energy


def zone(root, name, label, microjoules):
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(label, encoding="ascii")
    (folder / "energy_uj").write_text(f"{microjoules}\n", encoding="ascii")
    (folder / "max_energy_range_uj").write_text("1000000\n", encoding="ascii")


def test_packages_alone_are_read(tmp_path):
    """Core and memory zones are parts of a package; psys holds the packages."""
    zone(tmp_path, "intel-rapl:0", "package-0\n", 100)
    zone(tmp_path, "intel-rapl:1", "package-1\n", 200)
    zone(tmp_path, "intel-rapl:2", "psys\n", 900)
    zone(tmp_path, "intel-rapl:0:0", "core\n", 50)
    (tmp_path / "intel-rapl").mkdir()
    assert read_energy(tmp_path) == {
        "intel-rapl:0": Counter(100, 1000000),
        "intel-rapl:1": Counter(200, 1000000),
    }


def test_no_counter_is_no_energy(tmp_path):
    assert read_energy(tmp_path) is None
    assert read_energy(tmp_path / "missing") is None
    zone(tmp_path, "intel-rapl:0", "package-0\n", "secret")
    assert read_energy(tmp_path) is None
    assert joules_between(None, {"a": Counter(1, 2)}) is None
    assert joules_between({"a": Counter(1, 2)}, {"b": Counter(1, 2)}) is None


def test_joules_of_all_packages_over_the_end_of_a_counter():
    before = {"a": Counter(900_000, 1_000_000), "b": Counter(100_000, 1_000_000)}
    after = {"a": Counter(400_000, 1_000_000), "b": Counter(350_000, 1_000_000)}
    assert joules_between(before, after) == pytest.approx(0.75)
