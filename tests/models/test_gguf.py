"""The GGUF container: what it reads, and every lie that it refuses."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from tiny_models import key_value, raw_gguf, string, tensor_info

from hasten.errors import HastenError, ModelFileError, UnsupportedModelError
from hasten.models.gguf import read_gguf

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
HUGE = (1 << 60, 1 << 63, (1 << 64) - 1)


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return read_gguf(path)

    return read_bytes


def array(kind, count, data=b""):
    return struct.pack("<IQ", kind, count) + data


def u32(value):
    return struct.pack("<I", value)


def test_reads_what_the_gguf_package_writes(tmp_path):
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    expected = {
        "general.architecture": "llama",
        "a.bool": True,
        "a.int8": -5,
        "a.uint16": 65535,
        "a.uint64": 2**63,
        "a.float64": 0.1,
        "a.text": "naïve 🙂",
        "a.strings": ["", "b", "çé", "x" * 1000],
        "a.ints": [1, -2, 3],
        "a.floats": [0.5, -1.5],
        "a.bools": [True, False],
    }
    writer.add_bool("a.bool", True)
    writer.add_int8("a.int8", -5)
    writer.add_uint16("a.uint16", 65535)
    writer.add_uint64("a.uint64", 2**63)
    writer.add_float64("a.float64", 0.1)
    writer.add_string("a.text", expected["a.text"])
    for key in ("a.strings", "a.ints", "a.floats", "a.bools"):
        writer.add_array(key, expected[key])
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("a", values)
    writer.add_tensor("b", values.astype(np.float16).reshape(1, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_gguf(path)
    assert file.metadata == expected
    assert file.metadata["a.bool"] is True
    assert [file.tensors[name].shape for name in "ab"] == [(3, 4), (1, 3, 4)]
    assert np.array_equal(file.rows("a").view(np.float32), values)
    assert np.array_equal(file.rows("b").view(np.float16), values)


def test_reads_version_2_and_another_alignment(read):
    keys = [key_value("general.alignment", U32, u32(64))]
    tensors = [tensor_info("a"), tensor_info("b", offset=128)]
    head = raw_gguf(keys, tensors, version=2)
    content = head + b"\0" * (-len(head) % 64) + np.arange(64, dtype=np.float32).tobytes()
    assert read(content).rows("b").view(np.float32)[0, 0] == 32


def test_refuses_a_file_cut_at_every_length(read):
    keys = [
        key_value("general.architecture", STRING, string("llama")),
        key_value("a.list", ARRAY, array(STRING, 2, string("one") + string("two"))),
        key_value("a.numbers", ARRAY, array(U32, 2, bytes(8))),
    ]
    content = raw_gguf(keys, [tensor_info("a")], bytes(128))
    assert set(read(content).tensors) == {"a"}
    for length in range(len(content)):
        with pytest.raises(ModelFileError):
            read(content[:length])


LYING_HEADERS = {
    "empty": b"",
    "magic": b"GGML" + bytes(40),
    "text": b"<!DOCTYPE html><html><body>not found</body></html>",
    "many tensors": raw_gguf(counts=(1 << 20, 0)),
    "many keys": raw_gguf(counts=(0, 1 << 20)),
    "one tensor too many": raw_gguf(tensors=[tensor_info("a")], data=bytes(128), counts=(2, 0)),
    "key too long": raw_gguf([key_value("k" * 5000, U32, u32(1))]),
    "key not UTF-8": raw_gguf([key_value(b"\xff\xfe", U32, u32(1))]),
    "value not UTF-8": raw_gguf([key_value("a", STRING, string(b"\xc3\x28"))]),
    "element not UTF-8": raw_gguf([key_value("a", ARRAY, array(STRING, 1, string(b"\xff")))]),
    "key twice": raw_gguf([key_value("a", U32, u32(1))] * 2),
    "value type 13": raw_gguf([key_value("a", 13, u32(1))]),
    "value type -1": raw_gguf([key_value("a", 0xFFFFFFFF, u32(1))]),
    "element type 99": raw_gguf([key_value("a", ARRAY, array(99, 1, bytes(8)))]),
    "array of arrays": raw_gguf([key_value("a", ARRAY, array(ARRAY, 1, array(U32, 0)))]),
    "array longer than the file": raw_gguf([key_value("a", ARRAY, array(U32, 1000))]),
    "more strings than bytes": raw_gguf([key_value("a", ARRAY, array(STRING, 1000))]),
    "string past the end": raw_gguf(
        [key_value("a", ARRAY, array(STRING, 1, struct.pack("<Q", 1 << 40)))]
    ),
    "no alignment": raw_gguf([key_value("general.alignment", U32, u32(0))]),
    "alignment of 48": raw_gguf([key_value("general.alignment", U32, u32(48))]),
    "alignment of 2 GiB": raw_gguf([key_value("general.alignment", U32, u32(1 << 31))]),
    "alignment a float": raw_gguf([key_value("general.alignment", F32, struct.pack("<f", 32))]),
    "alignment a bool": raw_gguf([key_value("general.alignment", BOOL, b"\1")]),
}
LYING_TENSORS = {
    "no dimensions": [tensor_info("a", ())],
    "five dimensions": [tensor_info("a", (1,) * 5)],
    "a dimension of 0": [tensor_info("a", (32, 0))],
    "product overflows": [tensor_info("a", (1 << 32, 1 << 32))],
    "bytes overflow": [tensor_info("a", (1 << 62,))],
    "no whole block": [tensor_info("a", (33,), kind=3)],
    "no whole large block": [tensor_info("a", (128,), kind=12)],
    "encoding 4, withdrawn": [tensor_info("a", kind=4)],
    "encoding -1": [tensor_info("a", kind=0xFFFFFFFF)],
    "offset not aligned": [tensor_info("a", offset=8)],
    "offset past the end": [tensor_info("a", offset=1 << 20)],
    "offset wraps": [tensor_info("a", offset=(1 << 64) - 32)],
    "longer than the file": [tensor_info("a", (4096,))],
    "overlap": [tensor_info("a", (64,)), tensor_info("b", (8,), offset=32)],
    "same place": [tensor_info("a"), tensor_info("b")],
    "name twice": [tensor_info("a"), tensor_info("a", offset=128)],
    "name too long": [tensor_info("n" * 65)],
}


@pytest.mark.parametrize("content", LYING_HEADERS.values(), ids=LYING_HEADERS)
def test_refuses_lying_headers(read, content):
    with pytest.raises(ModelFileError) as caught:
        read(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("tensors", LYING_TENSORS.values(), ids=LYING_TENSORS)
def test_refuses_lying_tensors(read, tensors):
    with pytest.raises(ModelFileError) as caught:
        read(raw_gguf(tensors=tensors, data=bytes(512)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("huge", HUGE)
def test_huge_counts_allocate_nothing(read, huge):
    """A length is held against the file before anything is made for it."""
    length = struct.pack("<Q", huge)
    lies = [
        raw_gguf(counts=(huge, 0)),
        raw_gguf(counts=(0, huge)),
        raw_gguf([length + b"key"], counts=(0, 1)),
        raw_gguf([key_value("a", STRING, length)]),
        *(raw_gguf([key_value("a", ARRAY, array(kind, huge))]) for kind in range(13)),
        raw_gguf([key_value("a", ARRAY, array(STRING, 2, string("b") + length))]),
        raw_gguf(tensors=[length + bytes(64)]),
        raw_gguf(tensors=[tensor_info("a", (huge, huge))], data=bytes(256)),
        raw_gguf(tensors=[tensor_info("a", offset=huge & -32)], data=bytes(256)),
    ]
    tracemalloc.start()
    try:
        for content in lies:
            with pytest.raises(ModelFileError):
                read(content)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_small_file_cannot_ask_for_much_memory(read):
    """Many one-byte elements would become many Python objects: their number is limited."""
    content = raw_gguf([key_value("a", ARRAY, array(1, 9 << 20, bytes(9 << 20)))])
    with pytest.raises(ModelFileError, match="elements"):
        read(content)


def test_names_encodings_that_exist_but_are_not_read(read):
    with pytest.raises(UnsupportedModelError, match=r"IQ4_XS.*allowed.*Q4_K"):
        read(raw_gguf(tensors=[tensor_info("a", (256,), kind=23)]))


@pytest.mark.parametrize(("version", "words"), [(1, "version 1"), (0x03000000, "big-endian")])
def test_names_versions_that_are_not_read(read, version, words):
    with pytest.raises(UnsupportedModelError, match=words):
        read(raw_gguf(version=version))


def test_says_what_cannot_be_opened(tmp_path):
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(ModelFileError, match="cannot be read"):
            read_gguf(path)


def test_every_flipped_header_byte_is_read_or_refused(read):
    keys = [
        key_value("general.architecture", STRING, string("llama")),
        key_value("general.alignment", U32, u32(32)),
        key_value("a.list", ARRAY, array(STRING, 2, string("one") + string("two"))),
        key_value("a.numbers", ARRAY, array(U64, 2, bytes(16))),
    ]
    tensors = [tensor_info("a", (32, 2), kind=3), tensor_info("b", offset=64)]
    content = raw_gguf(keys, tensors, bytes(256))
    outcomes = set()
    for position in range(len(content) - 256):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(content)
            changed[position] ^= flip
            try:
                file = read(bytes(changed))
                outcomes.add("read")
                for name in file.tensors:
                    file.rows(name).sum()
            except HastenError as error:
                outcomes.add(type(error).__name__)
    assert outcomes == {"read", "ModelFileError", "UnsupportedModelError"}
