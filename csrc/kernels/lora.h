// The products with the narrow matrices of LoRA adapters (Hu et al. 2021). Lanes are rows, and the
// order in which an output adds its columns depends on the columns alone, so that tiles of any size
// give the same bits. A long product (shrink) adds even and odd columns apart: a single token would
// else be bound by the latency of its additions. A short one (expand) adds one after another.
#pragma once

#include "kernels.h"

namespace {

using hasten::kLoraRows;
using hasten::LoraArgs;
using hasten::LoraPanel;

constexpr int kLoraVectors = kLoraRows / Simd::width;
constexpr int kExpandTile = 12 / kLoraVectors;  // tokens: 12 sums, which 16 registers can hold
constexpr int kShrinkTile = kExpandTile / 2 > 0 ? kExpandTile / 2 : 1;  // each has two sums

template <class Element, int M>
void shrink_tile(const LoraArgs& args, int panel, int token) {
  using S = Simd;
  const LoraPanel& part = args.panels[panel];
  const auto* w = reinterpret_cast<const Element*>(part.data);
  const float* x[M];
  S::F even[M][kLoraVectors], odd[M][kLoraVectors];
  for (int m = 0; m < M; ++m) {
    x[m] = args.x[token + m] + part.first;
    for (int v = 0; v < kLoraVectors; ++v) even[m][v] = odd[m][v] = S::zero();
  }
  const auto add_column = [&](int k, S::F(&sum)[M][kLoraVectors]) {
    S::F column[kLoraVectors];
    for (int v = 0; v < kLoraVectors; ++v) column[v] = S::load(w + k * kLoraRows + v * S::width);
    for (int m = 0; m < M; ++m) {
      const S::F value = S::set1(x[m][k]);
      for (int v = 0; v < kLoraVectors; ++v) sum[m][v] = S::fma(column[v], value, sum[m][v]);
    }
  };
  int k = 0;
  for (; k + 2 <= part.columns; k += 2) {
    add_column(k, even);
    add_column(k + 1, odd);
  }
  if (k < part.columns) add_column(k, even);
  for (int v = 0; v < kLoraVectors; ++v) {
    const int row = panel * kLoraRows + v * S::width;
    const S::F scale = S::load(args.scales + row);
    for (int m = 0; m < M; ++m) {
      S::store(args.y[token + m] + row, S::mul(S::add(even[m][v], odd[m][v]), scale));
    }
  }
}

template <class Element, int M>
void expand_tile(const LoraArgs& args, int panel, int token) {
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
  for (int m = 0; m < M; ++m) {
    float* y = args.y[token + m] + panel * kLoraRows;
    for (int v = 0; v < kLoraVectors; ++v) S::store(y + v * S::width, sum[m][v]);
  }
}

// The largest tile that fits, again and again; the remainder takes smaller ones.
template <class Element, int M>
void shrink_tiles(const LoraArgs& args, int panel, int token) {
  for (; token + M <= args.tokens; token += M) shrink_tile<Element, M>(args, panel, token);
  if constexpr (M > 1) {
    if (token < args.tokens) shrink_tiles<Element, M / 2>(args, panel, token);
  }
}

template <class Element, int M>
void expand_tiles(const LoraArgs& args, int panel, int token) {
  for (; token + M <= args.tokens; token += M) expand_tile<Element, M>(args, panel, token);
  if constexpr (M > 1) {
    if (token < args.tokens) expand_tiles<Element, M / 2>(args, panel, token);
  }
}

void lora_shrink(const LoraArgs& args) {
  for (int panel = 0; panel < args.count; ++panel) {
    if (args.format == hasten::Format::bf16) {
      shrink_tiles<std::uint16_t, kShrinkTile>(args, panel, 0);
    } else {
      shrink_tiles<float, kShrinkTile>(args, panel, 0);
    }
  }
}

void lora_expand(const LoraArgs& args) {
  for (int panel = 0; panel < args.count; ++panel) {
    if (args.format == hasten::Format::bf16) {
      expand_tiles<std::uint16_t, kExpandTile>(args, panel, 0);
    } else {
      expand_tiles<float, kExpandTile>(args, panel, 0);
    }
  }
}

}  // namespace
