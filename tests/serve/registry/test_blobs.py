"""Uploaded files."""

import asyncio
import hashlib
import os
import time

import pytest

from hasten.errors import HastenError, NotFoundError, TooLargeError, UsageError
from hasten.serve.registry.blobs import BlobStore

CONTENT = b"some bytes" * 1000


def digest_of(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def pieces(content, size=999):
    for begin in range(0, len(content), size):
        yield content[begin : begin + size]


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "blobs", limit=1 << 20)


def test_a_blob_is_there_once_it_is_whole(store, tmp_path):
    digest = digest_of(CONTENT)
    assert not store.has(digest)
    asyncio.run(store.store(digest, pieces(CONTENT)))
    assert store.has(digest)
    assert [path.read_bytes() for path in (tmp_path / "blobs").iterdir()] == [CONTENT]


def test_a_blob_of_several_mebibytes_is_hashed_as_it_comes(tmp_path):
    content = os.urandom(3 << 20)
    store = BlobStore(tmp_path, limit=4 << 20)
    asyncio.run(store.store(digest_of(content), pieces(content, 70_000)))
    assert store.has(digest_of(content))


def test_other_content_than_promised_leaves_nothing(store, tmp_path):
    with pytest.raises(UsageError, match="has the digest"):
        asyncio.run(store.store(digest_of(b"else"), pieces(CONTENT)))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_is_too_large_is_refused_before_it_has_all_come(tmp_path):
    store = BlobStore(tmp_path, limit=100)
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 60
            yield b"x" * 60

    with pytest.raises(TooLargeError):
        asyncio.run(store.store(digest_of(b""), endless()))
    assert sent == 120
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(store, tmp_path):
    async def broken():
        yield CONTENT
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(store.store(digest_of(CONTENT), broken()))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_is_here_is_not_read_again(store):
    digest = digest_of(CONTENT)
    asyncio.run(store.store(digest, pieces(CONTENT)))

    async def untouched():
        pytest.fail("it was read")
        yield b""

    asyncio.run(store.store(digest, untouched()))


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../etc/passwd", "md5:00", f"sha256:{'A' * 64}", "x" * 999]
)
def test_what_is_no_digest_is_refused(store, digest):
    with pytest.raises(UsageError, match="is no digest"):
        store.has(digest)


def test_blobs_make_a_directory(store, tmp_path):
    asyncio.run(store.store(digest_of(CONTENT), pieces(CONTENT)))
    store.assemble({"model.gguf": digest_of(CONTENT)}, tmp_path / "new")
    assert (tmp_path / "new" / "model.gguf").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".x", "a\0", "x" * 200])
def test_names_that_lead_elsewhere_are_refused(store, tmp_path, name):
    asyncio.run(store.store(digest_of(CONTENT), pieces(CONTENT)))
    with pytest.raises(UsageError, match="no name of a file"):
        store.assemble({name: digest_of(CONTENT)}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_blob_that_is_not_here_makes_no_directory(store, tmp_path):
    with pytest.raises(NotFoundError):
        store.assemble({"model.gguf": digest_of(CONTENT)}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_old_blobs_that_nothing_was_made_of_go(store, tmp_path):
    for content in (b"old", b"used", b"fresh"):
        asyncio.run(store.store(digest_of(content), pieces(content)))
    store.assemble({"model.gguf": digest_of(b"used")}, tmp_path / "new")
    yesterday = time.time() - 25 * 3600
    for path in (tmp_path / "blobs").iterdir():
        if path.read_bytes() != b"fresh":
            os.utime(path, (yesterday, yesterday))
    store.prune()
    assert {path.read_bytes() for path in (tmp_path / "blobs").iterdir()} == {b"used", b"fresh"}


def test_a_disk_that_takes_nothing_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    store = BlobStore(tmp_path / "file" / "blobs", limit=1 << 20)
    with pytest.raises(HastenError, match="cannot be written"):
        asyncio.run(store.store(digest_of(CONTENT), pieces(CONTENT)))
