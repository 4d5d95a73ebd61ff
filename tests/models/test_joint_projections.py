"""Rows of joint projections (Phi-3) as tensors by themselves, in every encoding."""

import numpy as np
import pytest
from packed_models import SCHEMES, packed_tensors, write_packed
from test_weights import ggml_tensor

from hasten.errors import ModelFileError
from hasten.kernels.quantization import dequantize, quantize_rtn
from hasten.models import architectures, load_model
from hasten.models.config import ModelConfig
from hasten.models.weights import DenseTensor, QuantizedTensor

CONFIG = ModelConfig("phi3", 64, 96, 1, 4, 2, 16, 48, 128, 1e-5, 1e4)
PREFIX = "model.layers.0."
MATRIX = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)
DENSE = {
    "F32": MATRIX,
    "F16": MATRIX.astype(np.float16),
    "BF16": (MATRIX.view(np.uint32) >> 16).astype(np.uint16),
}


def check_rows(tensor, begin, end):
    """Values and codes of the rows are those of the whole."""
    rows = tensor.take_rows("part", begin, end)
    assert (rows.name, rows.shape) == ("part", (end - begin, tensor.shape[1]))
    np.testing.assert_array_equal(rows.to_float32(), tensor.to_float32()[begin:end])
    whole, part = tensor.quantized(), rows.quantized()
    if whole is None:
        assert part is None
        return
    assert part.shape == rows.shape
    np.testing.assert_array_equal(dequantize(part), dequantize(whole)[begin:end])


@pytest.mark.parametrize(("begin", "end"), [(0, 32), (33, 70), (5, 6)])
@pytest.mark.parametrize("encoding", DENSE)
def test_dense_rows(encoding, begin, end):
    tensor = DenseTensor("whole", encoding, DENSE[encoding])
    check_rows(tensor, begin, end)
    assert np.shares_memory(tensor.take_rows("part", begin, end).data, tensor.data)


@pytest.mark.parametrize("order", [None, np.random.default_rng(0).permutation(128)])
@pytest.mark.parametrize("encoding", ["F32", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_ggml_rows(encoding, order):
    tensor, _ = ggml_tensor(encoding, (128, 256), order=order)
    check_rows(tensor, 33, 70)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 64), (8, None)])
def test_quantised_rows(bits, group):
    check_rows(QuantizedTensor("whole", quantize_rtn(MATRIX, bits, group)), 33, 70)


@pytest.mark.parametrize(
    "scheme", ["gptq asymmetric", "gptq act-order", "awq", "packed asymmetric", "int"]
)
@pytest.mark.parametrize(("begin", "end"), [(0, 64), (3, 29)])
def test_rows_of_checkpoints_that_others_quantised(scheme, begin, end, tmp_path):
    kind = SCHEMES[scheme]
    model = load_model(write_packed(tmp_path, kind, packed_tensors(kind)[1]))
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        check_rows(model.weights[f"{PREFIX}{name}.weight"], begin, end)


def joint(**rows):
    return {
        PREFIX + name: DenseTensor(
            PREFIX + name, "F32", np.arange(n * 2.0, dtype="f4").reshape(n, 2)
        )
        for name, n in rows.items()
    }


def test_joint_projections_are_split():
    tensors = joint(**{"self_attn.qkv_proj.weight": 128, "mlp.gate_up_proj.weight": 192})
    found = architectures.arrange(CONFIG, tensors | joint(**{"mlp.down_proj.weight": 64}))
    bounds = {
        "self_attn.q_proj": ("self_attn.qkv_proj", 0, 64),
        "self_attn.k_proj": ("self_attn.qkv_proj", 64, 96),
        "self_attn.v_proj": ("self_attn.qkv_proj", 96, 128),
        "mlp.gate_proj": ("mlp.gate_up_proj", 0, 96),
        "mlp.up_proj": ("mlp.gate_up_proj", 96, 192),
    }
    assert found.keys() == {f"{PREFIX}{name}.weight" for name in (*bounds, "mlp.down_proj")}
    for name, (source, begin, end) in bounds.items():
        whole = tensors[f"{PREFIX}{source}.weight"].to_float32()
        part = found[f"{PREFIX}{name}.weight"].to_float32()
        np.testing.assert_array_equal(part, whole[begin:end])
        assert np.shares_memory(part, whole)


@pytest.mark.parametrize("rows", [127, 129, 1])
def test_refuses_a_joint_projection_of_other_rows(rows):
    with pytest.raises(ModelFileError, match=f"qkv_proj.*{rows} rows.*128"):
        architectures.arrange(CONFIG, joint(**{"self_attn.qkv_proj.weight": rows}))
