"""Batches on disk."""

from concurrent.futures import ThreadPoolExecutor

from hasten.serve.batch.records import BatchRecord, BatchStore, new_id


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
