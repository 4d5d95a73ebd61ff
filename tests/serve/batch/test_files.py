"""Stored files, and the forms that they come in."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import NotFoundError, OverloadError, TooLargeError, UsageError
from hasten.serve.files import FileStore
from hasten.serve.multipart import FormReader


def open_store(path, most_files=10, most_bytes=1000):
    return FileStore(path, most_files=most_files, most_bytes=most_bytes)


def put(store, content=b"hello", tenant="a", name="x.jsonl", seconds=None):
    incoming = store.add(tenant, "batch")
    try:
        incoming.write(content)
        return incoming.keep(name, seconds=seconds)
    finally:
        incoming.discard()


def test_files_outlive_the_store(tmp_path):
    file = put(open_store(tmp_path), name="../../etc/passwd")
    store = open_store(tmp_path)
    assert store.get("a", file.id) == file
    assert store.of("a") == [file]
    assert store.path(file).read_bytes() == b"hello"
    assert store.path(file).resolve().is_relative_to(tmp_path.resolve())
    assert file.name == "../../etc/passwd"


def test_files_of_others_do_not_exist(tmp_path):
    store = open_store(tmp_path)
    file = put(store, tenant="a")
    assert store.of("b") == []
    for tenant, name in (("b", file.id), ("a", "file-" + "0" * 32), ("a", "../x"), ("a", "")):
        with pytest.raises(NotFoundError):
            store.get(tenant, name)


def test_what_was_not_kept_is_not_there(tmp_path):
    store = open_store(tmp_path)
    incoming = store.add("a", "batch")
    incoming.write(b"hello")
    assert store.of("a") == open_store(tmp_path / "other").of("a") == []
    store = open_store(tmp_path)  # as after a kill
    assert store.of("a") == []
    assert list(tmp_path.glob(".new*")) == []
    incoming.discard()
    incoming.discard()
    with pytest.raises(ValueError, match="discarded"):
        incoming.write(b"x")


def test_bounds_are_those_of_a_tenant(tmp_path):
    store = open_store(tmp_path, most_files=2, most_bytes=20)
    first = put(store, b"x" * 12)
    with pytest.raises(TooLargeError, match="12 bytes"):
        put(store, b"x" * 9)
    put(store, b"x" * 8)
    put(store, b"x" * 20, tenant="b")
    with pytest.raises(TooLargeError, match="2 files"):
        put(store, b"")
    store.delete(first)
    put(store, b"x" * 12)
    reopened = open_store(tmp_path, most_files=3, most_bytes=20)
    with pytest.raises(TooLargeError):
        put(reopened, b"x")


def test_results_are_kept_in_any_case(tmp_path):
    store = open_store(tmp_path, most_files=1, most_bytes=5)
    put(store)
    name = "file-" + "1" * 32
    incoming = store.add_result("a", "batch_output", name)
    incoming.write(b"result")
    incoming.keep("out.jsonl")
    assert store.get("a", name).size == 6
    with pytest.raises(TooLargeError):
        put(store)


def test_a_file_is_gone_when_its_time_is_over(tmp_path, monkeypatch):
    store = open_store(tmp_path, most_files=1)
    file = put(store, seconds=60)
    now = file.created
    monkeypatch.setattr("hasten.serve.files.time.time", lambda: now + 61)
    assert store.of("a") == []
    with pytest.raises(NotFoundError):
        store.get("a", file.id)
    put(store)  # in its place
    assert not store.path(file).exists()


def test_deleted_files_are_gone(tmp_path):
    store = open_store(tmp_path)
    file = put(store)
    store.delete(file)
    store.delete(file)
    assert store.of("a") == []
    assert open_store(tmp_path).of("a") == []
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    store = open_store(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hasten.serve.files.os.fsync", full)
    with pytest.raises(OverloadError, match="No space left"):
        put(store)
    monkeypatch.undo()
    assert store.of("a") == []
    put(store, b"x" * 1000)


@pytest.mark.parametrize("damage", [b"{", b'{"id": "\xff"}'])
def test_what_is_no_stored_file_is_passed_over(tmp_path, caplog, damage):
    store = open_store(tmp_path)
    file = put(store)
    (tmp_path / file.id / "about.json").write_bytes(damage)
    (tmp_path / "notes.txt").touch()
    assert open_store(tmp_path).of("a") == []
    assert "no stored file" in caplog.text


def form(*parts, boundary="xyz"):
    text = b""
    for name, value, filename in parts:
        extra = "" if filename is None else f'; filename="{filename}"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
        text += head.encode() + value + b"\r\n"
    return text + f"--{boundary}--\r\n".encode()


def read_form(body, cuts=(), kind="multipart/form-data; boundary=xyz"):
    content = bytearray()
    reader = FormReader(kind, "file", content.extend)
    ends = sorted({*cuts, 0, len(body)})
    for start, end in zip(ends, ends[1:], strict=False):  # noqa: RUF007
        reader.push(body[start:end])
    reader.finish()
    return reader, bytes(content)


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=6))
def test_forms_come_in_any_pieces(content, cuts):
    if b"\r\n--xyz" in content:
        return
    body = form(("purpose", b"batch", None), ("file", content, "in.jsonl"))
    reader, got = read_form(body, [cut for cut in cuts if cut < len(body)])
    assert got == content
    assert reader.fields == {"purpose": "batch"}
    assert reader.file_name == "in.jsonl"


@given(st.binary(max_size=200), st.integers(0, 250))
def test_no_form_breaks_the_reader(noise, at):
    body = form(("purpose", b"batch", None), ("file", b"content", "in.jsonl"))
    for broken in (noise, body[:at], body[:at] + noise + body[at:]):
        try:  # noqa: SIM105
            read_form(broken)
        except (UsageError, TooLargeError):
            pass


def test_forms_have_bounds():
    with pytest.raises(TooLargeError):
        read_form(form(*((f"f{i}", b"", None) for i in range(20))))
    with pytest.raises(TooLargeError):
        read_form(form(("purpose", b"x" * 5000, None)))
    with pytest.raises(UsageError, match="two files"):
        read_form(form(("file", b"", "a"), ("file", b"", "b")))
    with pytest.raises(UsageError, match="no file"):
        read_form(form(("purpose", b"batch", None)))
    for kind in (
        "application/json",
        "multipart/form-data",
        "",
        f"multipart/form-data; boundary={'x' * 300}",
    ):
        with pytest.raises(UsageError):
            read_form(b"", kind=kind)
