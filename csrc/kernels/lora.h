// The products with the narrow matrices of LoRA adapters (Hu et al. 2021): lanes are rows, so each
// output adds its columns in order, and tiles of any size give the same bits.
#pragma once

#include "kernels.h"

namespace {

using hasten::kLoraRows;
using hasten::LoraArgs;
using hasten::LoraPanel;

constexpr int kLoraVectors = kLoraRows / Simd::width;
constexpr int kLoraTile = 12 / kLoraVectors;  // tokens: 12 sums, which 16 registers can hold

template <class Element, int M>
void lora_tile(const LoraArgs& args, int panel, int token) {
  using S = Simd;
  const LoraPanel& part = args.panels[panel];
  const auto* w = reinterpret_cast<const Element*>(part.data);
  const float* x[M];
  S::F sum[M][kLoraVectors];
  for (int m = 0; m < M; ++m) {
    x[m] = args.x[token + m] + part.first;
    for (int v = 0; v < kLoraVectors; ++v) sum[m][v] = S::zero();
  }
  for (int k = 0; k < part.columns; ++k, w += kLoraRows) {
    S::F column[kLoraVectors];
    for (int v = 0; v < kLoraVectors; ++v) column[v] = S::load(w + v * S::width);
    for (int m = 0; m < M; ++m) {
      const S::F value = S::set1(x[m][k]);
      for (int v = 0; v < kLoraVectors; ++v) sum[m][v] = S::fma(column[v], value, sum[m][v]);
    }
  }
  for (int v = 0; v < kLoraVectors; ++v) {
    const int row = panel * kLoraRows + v * S::width;
    const S::F scale = args.scales == nullptr ? S::set1(1.0f) : S::load(args.scales + row);
    for (int m = 0; m < M; ++m) S::store(args.y[token + m] + row, S::mul(sum[m][v], scale));
  }
}

template <class Element, int M>
void lora_tiles(const LoraArgs& args, int panel, int token) {
  for (; token + M <= args.tokens; token += M) lora_tile<Element, M>(args, panel, token);
  if constexpr (M > 1) {
    if (token < args.tokens) lora_tiles<Element, M / 2>(args, panel, token);
  }
}

void lora(const LoraArgs& args) {
  for (int panel = 0; panel < args.count; ++panel) {
    if (args.format == hasten::Format::bf16) {
      lora_tiles<std::uint16_t, kLoraTile>(args, panel, 0);
    } else {
      lora_tiles<float, kLoraTile>(args, panel, 0);
    }
  }
}

}  // namespace
