"""Packed weights that are kept for the next start: the same bits, or none."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from hasten import _native
from hasten.generation import Engine, weight_cache
from hasten.generation.formats import choose_formats
from hasten.generation.packed_file import file_size, read_packed, write_packed
from hasten.generation.packing import Packer
from hasten.generation.weight_cache import WeightCache, fill_weights, weight_key
from hasten.models import load_model
from hasten.types import EngineOptions, SamplingParams

SHAPES = ((70, 40, "int4", 32), (33, 64, "int8", 64), (5, 3, "f32", 0), (64, 96, "bf16", 0))
KEY = "k" * 64


def empty_matrices():
    arena = _native.Arena()
    return [
        _native.Matrix(kind, rows, columns, group, kind == "int4", arena)
        for rows, columns, kind, group in SHAPES
    ]


def filled_matrices(seed=0):
    """Matrices with random bytes: what a file holds is not looked into."""
    matrices = empty_matrices()
    rng = np.random.default_rng(seed)
    for matrix, (rows, columns, kind, group) in zip(matrices, SHAPES, strict=True):
        target = np.arange(rows, dtype=np.int32)
        if group == 0:
            matrix.place_float(rng.standard_normal((rows, columns)).astype(np.float32), target)
            continue
        padded = -(-columns // group) * group
        scales = rng.integers(0, 1 << 16, (rows, padded // group)).astype(np.uint16)
        codes = rng.integers(0, 256, (rows, padded)).astype(np.uint8)
        if kind == "int8":
            matrix.place_int8(codes.view(np.int8), scales, None, target)
        else:
            matrix.place_int4(np.ascontiguousarray(codes[:, : padded // 2]), scales, scales, target)
    return matrices


def contents(matrices):
    return [matrix.data.tobytes() for matrix in matrices]


def is_zero(matrices):
    return not any(matrix.data.any() for matrix in matrices)


@pytest.fixture(autouse=True)
def _roomy_disk(monkeypatch):
    """The disk that tests run on may be nearly full, and then nothing would be kept."""
    usage = SimpleNamespace(total=1 << 40, used=0, free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "one.packed"
    with path.open("wb") as file:
        write_packed(file, KEY, filled_matrices(), threads=2)
    return path


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"abc", 0x44BC2CF5AD770999),
        (b"xxhash", 0x32DD38952C4BC720),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_published_checksums(data, expected):
    assert _native.xxh64(data) == expected


def test_data_cannot_be_written_through(packed):
    matrix = filled_matrices()[0]
    with pytest.raises(ValueError, match="read-only"):
        matrix.data[0] = 1


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_written_is_read(packed, threads):
    matrices = empty_matrices()
    assert read_packed(packed, KEY, matrices, threads)
    assert contents(matrices) == contents(filled_matrices())
    assert packed.stat().st_size <= file_size(matrices)


def test_checksums_do_not_depend_on_threads():
    matrices = [*filled_matrices(), _native.Matrix("f32", 4096, 600)]  # the last has 3 pieces
    assert _native.count_pieces(matrices) == len(SHAPES) + 3
    assert _native.checksums(matrices, 1) == _native.checksums(matrices, 4)


def test_any_changed_byte_is_noticed(packed):
    """Or it is padding of the header, which says nothing."""
    original = packed.read_bytes()
    want = contents(filled_matrices())
    noticed = 0
    for at in [*range(400), *range(400, len(original), 97), len(original) - 1]:
        broken = bytearray(original)
        broken[at] ^= 0x10
        packed.write_bytes(broken)
        matrices = empty_matrices()
        if read_packed(packed, KEY, matrices, 1):
            assert contents(matrices) == want
        else:
            assert is_zero(matrices)
            noticed += 1
    assert noticed > 300


@pytest.mark.parametrize("cut", [0, 7, 15, 16, 100, 1000, -64, -1])
def test_a_truncated_file_is_not_read(packed, cut):
    packed.write_bytes(packed.read_bytes()[:cut])
    matrices = empty_matrices()
    assert not read_packed(packed, KEY, matrices, 2)
    assert is_zero(matrices)


def test_a_file_that_is_too_long_is_not_read(packed):
    packed.write_bytes(packed.read_bytes() + b"\0")
    assert not read_packed(packed, KEY, empty_matrices(), 2)


def header_of(content):
    length = int.from_bytes(content[12:16], "little")
    return json.loads(content[16 : 16 + length])


@pytest.mark.parametrize(
    "change",
    [
        {"sums": []},
        {"sums": None},
        {"sums": ["1"] * len(SHAPES)},
        {"sums": [-1] * len(SHAPES)},
        {"sums": [1 << 64] * len(SHAPES)},
        {"sums": [True] * len(SHAPES)},
        {"key": 1},
    ],
)
def test_a_header_that_lies_is_not_believed(packed, change):
    content = packed.read_bytes()
    length = int.from_bytes(content[12:16], "little")
    header = json.dumps(header_of(content) | change).encode()
    prefix = content[:12] + len(header).to_bytes(4, "little")
    packed.write_bytes(prefix + header + content[16 + length :])
    matrices = empty_matrices()
    assert not read_packed(packed, KEY, matrices, 1)
    assert is_zero(matrices)


def test_a_header_of_the_wrong_length(packed):
    content = packed.read_bytes()
    for length in (0, 1, 1 << 31, (1 << 32) - 1):
        packed.write_bytes(content[:12] + length.to_bytes(4, "little") + content[16:])
        assert not read_packed(packed, KEY, empty_matrices(), 1)
    packed.write_bytes(content[:16] + b"[" * (len(content) - 16))
    assert not read_packed(packed, KEY, empty_matrices(), 1)


def test_things_that_are_no_files(tmp_path):
    assert not read_packed(tmp_path / "missing", KEY, empty_matrices(), 1)
    assert not read_packed(tmp_path, KEY, empty_matrices(), 1)
    os.mkfifo(tmp_path / "pipe")
    assert not read_packed(tmp_path / "pipe", KEY, empty_matrices(), 1)


def test_another_key_is_not_read(packed):
    assert not read_packed(packed, "other", empty_matrices(), 1)


def test_other_shapes_are_not_read(packed):
    assert not read_packed(packed, KEY, empty_matrices()[:-1], 1)
    assert not read_packed(packed, KEY, [*empty_matrices(), _native.Matrix("f32", 1, 1)], 1)


# The directory.


def test_a_cache_keeps_and_finds(tmp_path):
    cache = WeightCache(tmp_path / "new" / "cache")
    assert not cache.load(KEY, empty_matrices(), 1)
    assert cache.save(KEY, filled_matrices())
    matrices = empty_matrices()
    assert cache.load(KEY, matrices, 2)
    assert contents(matrices) == contents(filled_matrices())
    (entry,) = cache.entries()
    assert entry.size == entry.path.stat().st_size
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    assert cache.clear() == entry.size
    assert cache.entries() == []


def test_a_damaged_entry_is_removed(tmp_path):
    cache = WeightCache(tmp_path)
    cache.save(KEY, filled_matrices())
    (entry,) = cache.entries()
    entry.path.write_bytes(b"nonsense")
    assert not cache.load(KEY, empty_matrices(), 1)
    assert cache.entries() == []


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    size = file_size(filled_matrices())
    cache = WeightCache(tmp_path, max_bytes=3 * size)
    for age, key in ((30, "a"), (20, "b"), (10, "c")):
        assert cache.save(key, filled_matrices())
        stamp = time.time() - age
        os.utime(tmp_path / f"{key}.packed", (stamp, stamp))
    assert cache.load("a", empty_matrices(), 1)  # now it is the one used last
    assert cache.save("d", filled_matrices())
    assert {entry.path.stem for entry in cache.entries()} == {"a", "c", "d"}


def test_an_entry_larger_than_the_cache_is_not_kept(tmp_path):
    cache = WeightCache(tmp_path, max_bytes=100)
    cache.save("small", [])
    assert not cache.save(KEY, filled_matrices())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_left_alone(tmp_path, monkeypatch):
    cache = WeightCache(tmp_path)
    usage = SimpleNamespace(total=1 << 40, used=0, free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert not cache.save(KEY, filled_matrices())
    assert cache.max_bytes == weight_cache.MAX_BYTES


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "write_packed", fail)
    assert not WeightCache(tmp_path).save(KEY, filled_matrices())
    assert list(tmp_path.iterdir()) == []


def test_unfinished_files_of_the_dead_are_removed(tmp_path):
    (tmp_path / "old.part").write_bytes(b"x")
    (tmp_path / "new.part").write_bytes(b"x")
    stamp = time.time() - 7200
    os.utime(tmp_path / "old.part", (stamp, stamp))
    cache = WeightCache(tmp_path)
    cache.save(KEY, filled_matrices())
    assert {path.name for path in tmp_path.iterdir()} == {"new.part", f"{KEY}.packed"}
    cache.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "refused"):
        cache = WeightCache(directory)
        if directory.name == "refused":  # permissions do not hold the superuser back
            monkeypatch.setattr(
                "pathlib.Path.mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError())
            )
        assert not cache.save(KEY, filled_matrices())
        assert not cache.load(KEY, empty_matrices(), 1)
        assert cache.entries() == []
        assert cache.clear() == 0


def test_writers_of_one_entry_at_once(tmp_path):
    cache = WeightCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(40):
            pool.submit(cache.save, KEY, filled_matrices())
        reads = []
        for _ in range(40):
            matrices = empty_matrices()
            if read_packed(tmp_path / f"{KEY}.packed", KEY, matrices, 1):
                reads.append(contents(matrices) == contents(filled_matrices()))
    assert all(reads)
    assert cache.load(KEY, empty_matrices(), 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEY}.packed"]


def test_where_the_cache_is(tmp_path, monkeypatch):
    for name, value, expected in (
        ("HASTEN_CACHE", "off", None),
        ("HASTEN_CACHE", str(tmp_path), tmp_path),
        ("XDG_CACHE_HOME", str(tmp_path), tmp_path / "hasten"),
        ("HOME", str(tmp_path), tmp_path / ".cache" / "hasten"),
    ):
        for other in ("HASTEN_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv(name, value)
        cache = WeightCache.from_environment()
        assert (None if cache is None else cache.directory) == expected


# What an entry belongs to.


def test_the_key_follows_files_contents_and_code(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_text("one")
    first = weight_key([path], ["f32"])
    assert first == weight_key([path], ["f32"])
    others = {weight_key([path], ["int8"]), weight_key([path, path], ["f32"])}
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    others.add(weight_key([path], ["f32"]))
    monkeypatch.setattr(weight_cache, "__version__", "99")
    others.add(weight_key([path], ["f32"]))
    monkeypatch.setattr(weight_cache, "_CODE", (json,))
    others.add(weight_key([path], ["f32"]))
    assert len(others | {first}) == 6


def test_no_key_without_files(tmp_path):
    assert weight_key([], []) is None
    assert weight_key([tmp_path / "gone"], []) is None


# Engines.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache that keeps even what is packed at once."""
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_cache, "WORTH_KEEPING", 0.0)
    return WeightCache(tmp_path / "cache")


def answer(directory, **options):
    """Tokens, logits of the prompt, and where the weights came from; what is kept is on disk."""
    model = load_model(directory)
    kept = {"max_context": 64, "threads": 2, "max_sequences": 1} | options
    prompt = [5, 6, 7, 8]
    with Engine(model, EngineOptions(**kept)) as engine:
        saving = []
        keep = engine._executor._weights.keep
        engine._executor._weights.keep = lambda: saving.append(keep())
        sampling = SamplingParams(max_tokens=8, ignore_eos=True)
        tokens = [t for out in engine.generate(prompt, sampling) for t in out.tokens]
        logits = np.concatenate([rows for _, rows in engine.score(prompt)])
        for thread in filter(None, saving):
            thread.join()
        return tokens, logits, engine.weights_source


@pytest.mark.parametrize("weights", ["carried", "bf16", "int8", "int8:32", "int4:32"])
def test_a_cached_engine_gives_the_same_bits(tiny_model, cache, weights):
    first = answer(tiny_model, weights=weights)
    again = answer(tiny_model, weights=weights)
    assert (first[2], again[2]) == ("files", "cache")
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])


def test_entries_serve_every_instruction_set(tiny_model, cache):
    """Panels do not depend on it, so the first set that runs packs for all."""
    sources = [answer(tiny_model, isa=isa, weights="int4:32")[2] for isa in _native.isas()]
    assert sources == ["files", *["cache"] * (len(sources) - 1)]


def test_another_format_or_graph_is_another_entry(tiny_model, cache):
    for options in ({"weights": "int8:32"}, {"weights": "bf16"}, {"fuse": False}):
        assert answer(tiny_model, **options)[2] == "files"
    assert len(cache.entries()) == 3


def test_a_changed_model_is_packed_again(tiny_model, cache, tmp_path):
    directory = shutil.copytree(tiny_model, tmp_path / "copy")
    before = answer(directory)
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = np.float32(0.25).tobytes()
    weights.write_bytes(content)
    after = answer(directory)
    assert (before[2], after[2]) == ("files", "files")


def test_a_damaged_entry_is_packed_again(tiny_model, cache):
    first = answer(tiny_model)
    (entry,) = cache.entries()
    content = bytearray(entry.path.read_bytes())
    content[-100] ^= 1
    entry.path.write_bytes(content)
    again = answer(tiny_model)
    assert again[2] == "files"
    np.testing.assert_array_equal(first[1], again[1])
    assert answer(tiny_model)[2] == "cache"


def test_weights_need_not_be_kept(tiny_model, cache, monkeypatch):
    answer(tiny_model, keep_weights=False)
    assert cache.entries() == []
    monkeypatch.setattr(weight_cache, "WORTH_KEEPING", 1000.0)
    answer(tiny_model)
    assert cache.entries() == []
    monkeypatch.setenv("HASTEN_CACHE", "off")
    monkeypatch.setattr(weight_cache, "WORTH_KEEPING", 0.0)
    assert answer(tiny_model)[2] == "files"
    assert cache.entries() == []


# Packing with several threads.


@pytest.mark.parametrize("weights", ["carried", "f32", "bf16", "int8", "int8:32", "int4:32"])
def test_packing_in_parts_gives_the_same_bytes(tiny_model, weights, monkeypatch):
    """Parts are whole panels, since a byte of a panel may hold codes of two rows."""
    model = load_model(tiny_model)
    names = [name for name in model.weights if len(model.weights[name].shape) == 2]
    formats = choose_formats(model.weights, names, EngineOptions(weights=weights))
    layer = "model.layers.0."
    products = [
        (tuple(f"{layer}self_attn.{x}_proj.weight" for x in "qkv"), False),
        (tuple(f"{layer}mlp.{x}_proj.weight" for x in ("gate", "up")), True),
        (("model.embed_tokens.weight",), False),
    ]

    def packed(elements, threads):
        monkeypatch.setattr("hasten.generation.packing.PART_ELEMENTS", elements)
        packer = Packer(model.weights, formats)
        for tensors, gated in products:
            packer.matrix(tensors, gated=gated)
        fill_weights(packer, [], threads)
        return contents(packer.matrices)

    want = packed(1 << 30, 1)
    assert packed(1, 1) == want
    assert packed(1, 5) == want


def test_an_error_while_packing_reaches_the_caller():
    from tiny import make_model

    model = make_model()
    name = "model.layers.1.mlp.up_proj.weight"
    model.weights[name].data[3, 3] = np.nan
    with pytest.raises(Exception, match="NaN or infinite"):
        Engine(model, EngineOptions(max_context=64, threads=2, weights="int8:32"))
