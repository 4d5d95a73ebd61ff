"""The safetensors container: agreement with the library, and every lie that it refuses."""

import json
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hasten.errors import HastenError, ModelFileError, UnsupportedModelError
from hasten.models.safetensors import StoredArray, read_safetensors, write_safetensors


@pytest.fixture
def read(tmp_path):
    def read_bytes(content: bytes):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return read_safetensors(path)

    return read_bytes


def container(header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


VALID = container({"a": entry(), "b": entry("BF16", (2, 2), (8, 16))}, bytes(range(16)))


def test_reads_what_the_library_writes(tmp_path):
    arrays = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f16": np.arange(4, dtype=np.float16),
        "i8": np.arange(-3, 3, dtype=np.int8),
        "scalar": np.array(7, np.int64),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "a.safetensors")
    assert {name: array.dtype for name, array in found.items()} == {
        "f32": "F32",
        "f16": "F16",
        "i8": "I8",
        "scalar": "I64",
    }
    for name, array in arrays.items():
        assert np.array_equal(found[name].data, array)
        assert not found[name].data.flags.writeable


def test_the_library_reads_what_is_written(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.safetensors"
    arrays = {
        "codes": StoredArray("U8", rng.integers(0, 256, (3, 5), dtype=np.uint8)),
        "scales": StoredArray("F16", rng.standard_normal((3, 1)).astype(np.float16)),
        "norm": StoredArray("F32", rng.standard_normal((4, 7)).astype(np.float32)[:, ::2]),
    }
    write_safetensors(path, arrays)
    for name, values in load_file(path).items():
        assert np.array_equal(values, arrays[name].data)
    write_safetensors(path, {"half": StoredArray("BF16", np.arange(6, dtype=np.uint16))})
    with safe_open(path, framework="np") as file:
        assert file.get_slice("half").get_dtype() == "BF16"
    assert np.array_equal(read_safetensors(path)["half"].data, np.arange(6))


def test_reads_bfloat16_as_bits(read):
    assert read(VALID)["b"].data.tolist() == [[0x0908, 0x0B0A], [0x0D0C, 0x0F0E]]


LIES = {
    "empty": b"",
    "header longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "header of 2**64 - 1": b"\xff" * 8 + b"{}",
    "no JSON": container(b"{'a': 1}"),
    "no object": container([1, 2]),
    "not UTF-8": container(b"\xff\xff"),
    "nested deeply": container(b"[" * 100_000),
    "nested objects": container(b'{"a":' * 100_000),
    "a number of 10,000 digits": container(b'{"a": ' + b"9" * 10_000 + b"}"),
    "key twice": container(b'{"a": 1, "a": 2}'),
    "entry no object": container({"a": 3}),
    "entry empty": container({"a": {}}),
    "shape no list": container({"a": entry() | {"shape": 2}}, bytes(8)),
    "shape negative": container({"a": entry(shape=(-1, -2))}, bytes(8)),
    "shape of booleans": container({"a": entry(shape=(True, 2))}, bytes(8)),
    "shape of floats": container({"a": entry(shape=(2.0,))}, bytes(8)),
    "shape empty dimension": container({"a": entry(shape=(0, 1 << 61), offsets=(0, 0))}),
    "shape overflows": container({"a": entry(shape=(1 << 61, 8))}, bytes(8)),
    "too many dimensions": container({"a": entry(shape=(1,) * 80 + (2,))}, bytes(8)),
    "offsets reversed": container({"a": entry(offsets=(8, 0))}, bytes(8)),
    "offsets negative": container({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "offsets past the end": container({"a": entry(offsets=(0, 16), shape=(4,))}, bytes(8)),
    "three offsets": container({"a": entry(offsets=(0, 4, 8))}, bytes(8)),
    "size of another shape": container({"a": entry(shape=(3,))}, bytes(8)),
    "overlap": container({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "same bytes twice": container({"a": entry(), "b": entry()}, bytes(8)),
    "a hole": container({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "unused end": container({"a": entry()}, bytes(9)),
    "a name of a million characters": container({"a" * 1_000_000: entry()}, bytes(8)),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_refuses_lies(read, content):
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError) as caught:
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_names_unknown_element_types(read):
    with pytest.raises(UnsupportedModelError, match="F4"):
        read(container({"a": entry("F4", (16,))}, bytes(8)))
    with pytest.raises(UnsupportedModelError, match="element type 7"):
        read(container({"a": entry(7)}, bytes(8)))


def test_says_what_cannot_be_opened(tmp_path):
    for path in (tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(ModelFileError, match="cannot be read"):
            read_safetensors(path)


def test_refuses_a_file_cut_at_every_length(read):
    assert set(read(VALID)) == {"a", "b"}
    for length in range(len(VALID)):
        with pytest.raises(ModelFileError):
            read(VALID[:length])


def test_every_flipped_header_byte_is_read_or_refused(read):
    outcomes = set()
    for position in range(len(VALID) - 16):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            changed = bytearray(VALID)
            changed[position] ^= flip
            try:
                for array in read(bytes(changed)).values():
                    array.data.sum()
                outcomes.add("read")
            except HastenError as error:
                outcomes.add(type(error).__name__)
    assert outcomes == {"read", "ModelFileError", "UnsupportedModelError"}
