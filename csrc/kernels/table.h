// The table of this instruction set; included last by isa_<isa>.cpp.
#pragma once

#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "lora.h"
#include "probes.h"
#include "rows.h"

namespace {

constexpr hasten::Kernels kTable = {
    .name = Simd::name,
    .linear = linear,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .quantize = quantize,
    .silu_mul = silu_mul,
    .gelu = gelu_row,
    .gelu_tanh = gelu_tanh_row,
    .gelu_mul = gelu_mul,
    .scale = scale,
    .softcap = softcap,
    .add = add,
    .softmax_weights = softmax_weights,
    .rotate = rotate,
    .quantize_row = quantize_row,
    .attention = attention,
    .dequantize = dequantize,
    .lora_shrink = lora_shrink,
    .lora_expand = lora_expand,
    .int8_probe = int8_probe,
    .fp32_probe = fp32_probe,
};

}  // namespace
