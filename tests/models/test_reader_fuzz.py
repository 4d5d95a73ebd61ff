"""Nothing that lies in a model file makes anything but a `HastenError`, or takes much memory.

`HASTEN_FUZZ_EXAMPLES` sets how many examples each test tries; with it they differ from run to run.
"""

import json
import os
import struct
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from family_configs import SIZES, VARIANTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed_models import SCHEMES, packed_tensors, write_packed
from tiny_models import (
    CONFIG,
    key_value,
    raw_gguf,
    string,
    tensor_info,
    tiny_tensors,
    write_directory,
    write_gguf,
)

from hasten.errors import HastenError
from hasten.kernels.quantization import dequantize, quantize_rtn
from hasten.models import load_model
from hasten.models.artefact import write_artefact
from hasten.models.config_json import from_huggingface, to_huggingface
from hasten.models.gguf import read_gguf
from hasten.models.inventory import tensor_shapes
from hasten.models.safetensors import read_safetensors

EXAMPLES = os.environ.get("HASTEN_FUZZ_EXAMPLES")
fuzzed = settings(
    max_examples=int(EXAMPLES or 120),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
MEMORY = 32 << 20
"""Bytes that reading a file of at most some 100 KB may take; a lie would ask for far more."""

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 31, 32, 33, 255, 1 << 31, 1 << 32, 1 << 60, 1 << 63, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 64),
)


@contextmanager
def only_hasten_errors():
    """Fails on any other exception, on errors of several lines, and on hunger for memory."""
    message = ""
    tracemalloc.start()
    try:
        yield
    except HastenError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "\n" not in message
    assert len(message) < 2000
    assert peak < MEMORY


def use(model):
    """Everything that may be asked of a model's weights."""
    for tensor in model.weights.values():
        tensor.to_float32()
        tensor.quantized()


def u32(value):
    return struct.pack("<I", value & 0xFFFFFFFF)


def u64(value):
    return struct.pack("<Q", value)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def gguf_bytes(place):
    """A whole small model, its matrices in Q4_1."""
    keys = [("tokenizer.ggml.tokens", ["a", "b", "ü"]), ("tokenizer.ggml.eos_token_id", 2)]
    return write_gguf(place / "valid.gguf", metadata=keys, encoding="Q4_1").read_bytes()


def gguf_values():
    scalars = st.tuples(st.integers(0, 13), st.binary(max_size=8))
    strings = st.tuples(st.just(8), st.binary(max_size=12).map(string))
    lying = st.tuples(st.just(8), NUMBERS.map(u64))
    arrays = st.builds(
        lambda kind, count, data: (9, u32(kind) + u64(count) + data),
        st.integers(0, 13),
        NUMBERS,
        st.binary(max_size=64),
    )
    return st.one_of(scalars, strings, lying, arrays)


def gguf_files():
    names = st.sampled_from(["general.alignment", "general.architecture", "llama.a", "b", ""])
    keys = st.builds(lambda name, value: key_value(name, *value), names, gguf_values())
    tensors = st.builds(
        tensor_info,
        st.text(max_size=3),
        st.lists(NUMBERS, max_size=5),
        st.integers(0, 45),
        st.one_of(NUMBERS, st.integers(0, 8).map(lambda n: n * 32)),
    )
    counts = st.one_of(st.none(), st.tuples(NUMBERS, NUMBERS))
    return st.builds(
        lambda keys, tensors, data, counts: raw_gguf(keys, tensors, data, counts=counts),
        st.lists(keys, max_size=4),
        st.lists(tensors, max_size=4),
        st.integers(0, 600).map(bytes),
        counts,
    )


@fuzzed
@given(
    content=st.one_of(
        gguf_files(),
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda rest: b"GGUF" + u32(3) + rest),
    )
)
def test_gguf_containers(place, content):
    path = place / "container.gguf"
    path.write_bytes(content)
    with only_hasten_errors():
        file = read_gguf(path)
        for name in file.tensors:
            file.rows(name).sum()


@fuzzed
@given(data=st.data())
def test_gguf_models_with_changed_bytes(place, gguf_bytes, data):
    changed = bytearray(gguf_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 5000), "position")
        value = data.draw(st.one_of(NUMBERS.map(u64), NUMBERS.map(u32), st.binary(max_size=4)))
        changed[at : at + len(value)] = value
    length = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))), "length")
    path = place / "changed.gguf"
    path.write_bytes(changed[:length])
    with only_hasten_errors():
        use(load_model(path))


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        NUMBERS,
        NUMBERS.map(lambda n: -n),
        st.just(10**400),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["llama", "mistral", "default", "linear", "llama3", "hasten", "F32", "I8"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["rope_type", "factor", "bits", "group"]), inner),
    ),
    max_leaves=5,
)


def change_json(draw, values):
    """Puts something else in one place of a JSON object, one or more levels down."""
    key = draw(st.sampled_from(sorted(values)))
    if isinstance(values[key], dict) and values[key] and draw(st.booleans()):
        change_json(draw, values[key])
    elif draw(st.integers(0, 5)) == 0:
        del values[key]
    else:
        values[key] = draw(JSON)


def safetensors_parts(content):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header, data):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return u64(len(encoded)) + encoded + data


@fuzzed
@given(data=st.data())
def test_safetensors_headers(place, data):
    arrays = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "__metadata__": {"format": "pt"},
    }
    for _ in range(data.draw(st.integers(1, 3))):
        if arrays:
            change_json(data.draw, arrays)
    content = join_safetensors(arrays, bytes(data.draw(st.sampled_from([32, 31, 33, 0]))))
    path = place / "container.safetensors"
    path.write_bytes(data.draw(st.sampled_from([content, content[:-40], content[8:]])))
    with only_hasten_errors():
        for array in read_safetensors(path).values():
            array.data.sum()


@fuzzed
@given(
    content=st.one_of(
        st.binary(max_size=100),
        st.binary(max_size=100).map(lambda rest: join_safetensors(rest, b"")),
        st.text(alphabet='{}[]":,01ab\\', max_size=60).map(
            lambda text: join_safetensors(b"{" + text.encode(), b"")
        ),
    )
)
def test_safetensors_of_random_bytes(place, content):
    path = place / "random.safetensors"
    path.write_bytes(content)
    with only_hasten_errors():
        read_safetensors(path)


@pytest.fixture(scope="module")
def directory(place):
    return write_directory(place / "directory")


@fuzzed
@given(data=st.data())
def test_huggingface_configs(directory, data):
    config = CONFIG | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    }
    for _ in range(data.draw(st.integers(1, 3))):
        change_json(data.draw, config)
    (directory / "config.json").write_text(json.dumps(config))
    with only_hasten_errors():
        use(load_model(directory))


@fuzzed
@given(data=st.data())
def test_configs_of_families(data):
    model_type, changes = data.draw(st.sampled_from(list(VARIANTS.values())))
    config = SIZES | json.loads(json.dumps(changes)) | {"model_type": model_type}
    for _ in range(data.draw(st.integers(1, 3))):
        part = config.get("rope_scaling") if data.draw(st.booleans()) else config
        change_json(data.draw, part if isinstance(part, dict) and part else config)
    with only_hasten_errors():
        config = from_huggingface(config)
        tensor_shapes(config)
        assert from_huggingface(to_huggingface(config)) == config


@pytest.fixture(scope="module")
def artefact(place):
    source = load_model(write_directory(place / "source"))
    weights = {
        name: quantize_rtn(tensor.to_float32(), 4 if "mlp" in name else 8, 32)
        if len(tensor.shape) == 2
        else tensor
        for name, tensor in source.weights.items()
    }
    write_artefact(place / "artefact", source, weights, {"a": 1})
    config = json.loads((place / "artefact" / "config.json").read_text())
    return place / "artefact", config, (place / "artefact" / "model.safetensors").read_bytes()


@fuzzed
@given(data=st.data())
def test_artefacts(artefact, data):
    path, config, content = artefact
    config = json.loads(json.dumps(config))
    header, rest = safetensors_parts(content)
    if data.draw(st.booleans(), "change the config"):
        part = data.draw(st.sampled_from([config, config["quantization_config"]]))
        change_json(data.draw, part)
    else:
        change_json(data.draw, header)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(join_safetensors(header, rest))
    with only_hasten_errors():
        use(load_model(path))


@pytest.fixture(scope="module", params=["gptq act-order", "awq", "packed asymmetric", "int"])
def packed(request, place):
    kind = SCHEMES[request.param]
    path = write_packed(place / request.param, kind, packed_tensors(kind)[1])
    config = json.loads((path / "config.json").read_text())
    return path, config, (path / "model.safetensors").read_bytes()


@settings(fuzzed, max_examples=int(EXAMPLES or 40))
@given(data=st.data())
def test_checkpoints_that_others_quantised(packed, data):
    path, config, content = packed
    config = json.loads(json.dumps(config))
    header, rest = safetensors_parts(content)
    what = data.draw(st.sampled_from(["config", "header", "data"]))
    if what == "config":
        part = data.draw(st.sampled_from([config, config["quantization_config"]]))
        change_json(data.draw, part)
    elif what == "header":
        change_json(data.draw, header)
    else:
        name = data.draw(st.sampled_from(sorted(header)))
        start, end = header[name]["data_offsets"]
        noise = data.draw(st.binary(min_size=1, max_size=min(64, end - start)))
        rest = rest[:start] + noise + rest[start + len(noise) :]
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(join_safetensors(header, rest))
    with only_hasten_errors():
        model = load_model(path)
        use(model)
        for tensor in model.weights.values():
            if (matrix := tensor.quantized()) is not None:
                assert np.isfinite(dequantize(matrix)).all()


@fuzzed
@given(data=st.data())
def test_random_weights_are_values_or_an_error(place, gguf_bytes, data):
    """Blocks of any content decode to finite numbers or are refused, without a warning."""
    seed, encoding = (
        data.draw(st.integers(0, 1 << 32)),
        data.draw(st.sampled_from(["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])),
    )
    path = place / "random.gguf"
    write_gguf(path, encoding=encoding)
    content = bytearray(path.read_bytes())
    noise = np.random.default_rng(seed).integers(0, 256, 64, dtype=np.uint8)
    at = data.draw(st.integers(len(content) // 2, len(content) - 64))
    content[at : at + 64] = noise.tobytes()
    path.write_bytes(content)
    with only_hasten_errors():
        model = load_model(path)
        for tensor in model.weights.values():
            matrix = tensor.quantized()
            assert np.isfinite(tensor.to_float32()).all()
            assert matrix is None or matrix.scales.dtype == np.float16


def test_the_valid_files_are_valid(place, gguf_bytes, artefact, packed, tmp_path):
    """Otherwise the tests above would only see one refusal."""
    use(load_model(place / "valid.gguf"))
    use(load_model(write_directory(tmp_path)))
    for path, config, content in (packed, artefact):
        (path / "config.json").write_text(json.dumps(config))
        (path / "model.safetensors").write_bytes(join_safetensors(*safetensors_parts(content)))
        use(load_model(path))
    assert tiny_tensors().keys() == load_model(path).weights.keys()
