"""Batches on disk."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from hasten.serve.batch.records import BatchRecord, BatchStore, new_id


@pytest.mark.parametrize("damage", [b"{", b'{"id": "\xff"}'])
def test_what_is_no_batch_is_passed_over(tmp_path, caplog, damage):
    directory = tmp_path / new_id()
    directory.mkdir()
    (directory / "record.json").write_bytes(damage)
    assert BatchStore(tmp_path).of("a") == []
    assert "is no batch" in caplog.text


def test_one_batch_is_saved_from_several_threads(tmp_path):
    # Whoever cancels a batch saves it, and so does the worker that comes to its end.
    lines = tmp_path / "lines"
    lines.write_bytes(b"{}")
    store = BatchStore(tmp_path / "batches")
    record = BatchRecord(
        id=new_id(),
        tenant="a",
        client="a",
        endpoint="/v1/completions",
        input_file="file-1",
        window="24h",
        created=1.0,
        expires=2.0,
    )
    store.add(record, lines)
    with ThreadPoolExecutor(8) as threads:
        for saved in [threads.submit(store.save, record) for _ in range(200)]:
            saved.result()
    assert BatchStore(tmp_path / "batches").get("a", record.id).endpoint == record.endpoint
