// y = x W^T over panels of 32 weight rows: lanes are rows, so each output adds its columns in order
// and tiles of any size give the same bits.
#pragma once

#include "kernels.h"
#include "math.h"

namespace {

using hasten::Epilogue;
using hasten::Format;
using hasten::kPanelRows;
using hasten::LinearArgs;

constexpr int kVectors = kPanelRows / Simd::width;  // vectors of a panel's rows
constexpr int kPairs = kVectors / 2;                // int4: vectors p and p + kPairs share bytes

template <int M>
using Tile = Simd::F[M][kVectors];  // [token][rows of the panel]

// Adds the bias, scales, applies the epilogue and writes the rows of `panel` that exist.
template <int M>
void finish_tile(const LinearArgs& args, int panel, int token, Tile<M>& tile) {
  using S = Simd;
  const int first = panel * kPanelRows;
  const bool gated = hasten::is_gated(args.epilogue);
  const int rows = gated ? kPanelRows / 2 : kPanelRows;
  const int out_first = gated ? first / 2 : first;
  const int count = args.y_width - out_first < rows ? args.y_width - out_first : rows;
  for (int m = 0; m < M; ++m) {
    if (args.bias != nullptr) {
      for (int v = 0; v < kVectors; ++v) {
        tile[m][v] = S::add(tile[m][v], S::load(args.bias + first + v * S::width));
      }
    }
    const float* delta = args.delta == nullptr ? nullptr : args.delta[token + m - args.delta_token];
    if (delta != nullptr) {
      delta += (panel - args.delta_panel) * kPanelRows;
      for (int v = 0; v < kVectors; ++v) {
        tile[m][v] = S::add(tile[m][v], S::load(delta + v * S::width));
      }
    }
    if (args.scale != 1.0f) {
      for (int v = 0; v < kVectors; ++v) tile[m][v] = S::mul(tile[m][v], S::set1(args.scale));
    }
    alignas(64) float buffer[kPanelRows];
    float* y = args.y + static_cast<std::ptrdiff_t>(token + m) * args.y_width + out_first;
    float* target = count == rows ? y : buffer;
    if (args.epilogue == Epilogue::add && target == buffer) {
      for (int i = 0; i < count; ++i) buffer[i] = y[i];
      for (int i = count; i < rows; ++i) buffer[i] = 0.0f;
    }
    for (int v = 0; v < rows / S::width; ++v) {
      float* place = target + v * S::width;
      switch (args.epilogue) {
        case Epilogue::store:
          S::store(place, tile[m][v]);
          break;
        case Epilogue::add:
          S::store(place, S::add(S::load(place), tile[m][v]));
          break;
        case Epilogue::silu_mul:
          S::store(place, S::mul(silu(tile[m][v]), tile[m][v + kVectors / 2]));
          break;
        case Epilogue::gelu_mul:
          S::store(place, S::mul(gelu_tanh(tile[m][v]), tile[m][v + kVectors / 2]));
          break;
        case Epilogue::gelu:
          S::store(place, gelu(tile[m][v]));
          break;
        case Epilogue::gelu_tanh:
          S::store(place, gelu_tanh(tile[m][v]));
          break;
      }
    }
    if (target == buffer) {
      for (int i = 0; i < count; ++i) y[i] = buffer[i];
    }
  }
}

// Asks for weights that come from memory a while before they are used: left to itself the hardware
// keeps too few lines in flight, and one token's products wait (benchmarks/LOG.md).
template <int Bytes>
inline void prefetch(const std::uint8_t* w) {
  constexpr int kAhead = 3072, kLine = 64;
  for (int i = 0; i < Bytes; i += kLine) __builtin_prefetch(w + kAhead + i);
}

// A tile's `fresh` says that it is the first to read its panel.
template <class Element, int M>
void float_tile(const LinearArgs& args, int panel, int token, bool fresh) {
  using S = Simd;
  const auto* w =
      reinterpret_cast<const Element*>(args.weight.data + panel * args.weight.panel_bytes);
  const std::ptrdiff_t stride = args.weight.columns;
  const float* x = args.x + token * stride;
  Tile<M> tile;
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kVectors; ++v) tile[m][v] = S::zero();
  }
  for (int k = 0; k < args.weight.columns; ++k) {
    if (fresh) {
      prefetch<kPanelRows * sizeof(Element)>(
          reinterpret_cast<const std::uint8_t*>(w + k * kPanelRows));
    }
    S::F column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = S::load(w + k * kPanelRows + v * S::width);
    for (int m = 0; m < M; ++m) {
      const S::F value = S::set1(x[m * stride + k]);
      for (int v = 0; v < kVectors; ++v) tile[m][v] = S::fma(column[v], value, tile[m][v]);
    }
  }
  finish_tile<M>(args, panel, token, tile);
}

constexpr int kInt4Zero = 8;

// Subtracts the zero point's share of the sums: zero * (sum of the token's codes).
template <int M>
void subtract_zero(Simd::I (&sum)[M], int zero, const std::int32_t* totals) {
  for (int m = 0; m < M; ++m) {
    sum[m] = Simd::sub_int(sum[m], Simd::set1_int(zero * totals[m]));
  }
}

// `Blocks` times 32 columns share an activation scale.
template <int M, int Blocks, bool Minimum>
void int4_tile(const LinearArgs& args, int panel, int token, bool fresh) {
  using S = Simd;
  const hasten::MatrixView& weight = args.weight;
  const hasten::QuantizedView& q = args.q;
  const int groups = q.groups, parts = weight.group / q.group;
  const std::ptrdiff_t stride = q.padded;
  const std::uint8_t* w = weight.data + panel * weight.panel_bytes;
  const std::int8_t* codes = q.codes + token * stride;
  Tile<M> tile;
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kVectors; ++v) tile[m][v] = S::zero();
  }
  for (int g = 0; g < groups;) {
    const auto* row_scales = reinterpret_cast<const std::uint16_t*>(w);
    const auto* minimums = row_scales + kPanelRows;
    if (fresh) prefetch<kPanelRows*(Minimum ? 4 : 2)>(w);
    w += kPanelRows * (Minimum ? 4 : 2);
    for (int part = 0; part < parts; ++part, ++g) {
      const std::ptrdiff_t index = static_cast<std::ptrdiff_t>(g) * q.stride + token;
      const float *scales = q.scales + index, *sums = q.sums + index;
      if (fresh) prefetch<Blocks * 512>(w);
      for (int p = 0; p < kPairs; ++p) {
        S::I low[M], high[M];
        S::template dot_int4<M, Blocks>(w + p * 4 * S::width, codes, stride, low, high);
        if constexpr (!Minimum) {
          subtract_zero<M>(low, kInt4Zero, q.totals + index);
          subtract_zero<M>(high, kInt4Zero, q.totals + index);
        }
        const S::F low_scale = S::load_half(row_scales + p * S::width);
        const S::F high_scale = S::load_half(row_scales + (p + kPairs) * S::width);
        S::F low_minimum, high_minimum;
        if constexpr (Minimum) {
          low_minimum = S::load_half(minimums + p * S::width);
          high_minimum = S::load_half(minimums + (p + kPairs) * S::width);
        }
        for (int m = 0; m < M; ++m) {
          const S::F scale = S::set1(scales[m]);
          S::F a = tile[m][p], b = tile[m][p + kPairs];
          a = S::fma(S::to_float(low[m]), S::mul(low_scale, scale), a);
          b = S::fma(S::to_float(high[m]), S::mul(high_scale, scale), b);
          if constexpr (Minimum) {
            const S::F sum = S::set1(sums[m]);
            a = S::fma(low_minimum, sum, a);
            b = S::fma(high_minimum, sum, b);
          }
          tile[m][p] = a;
          tile[m][p + kPairs] = b;
        }
      }
      w += Blocks * 512;
      codes += Blocks * hasten::kBlock;
    }
  }
  finish_tile<M>(args, panel, token, tile);
}

template <int M, int Blocks, bool Minimum>
void int8_tile(const LinearArgs& args, int panel, int token, bool fresh) {
  using S = Simd;
  const hasten::MatrixView& weight = args.weight;
  const hasten::QuantizedView& q = args.q;
  const int groups = q.groups, parts = weight.group / q.group;
  const std::ptrdiff_t stride = q.padded;
  const std::uint8_t* w = weight.data + panel * weight.panel_bytes;
  const std::int8_t* codes = q.codes + token * stride;
  Tile<M> tile;
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < kVectors; ++v) tile[m][v] = S::zero();
  }
  for (int g = 0; g < groups;) {
    const auto* row_scales = reinterpret_cast<const std::uint16_t*>(w);
    const auto* minimums = row_scales + kPanelRows;
    if (fresh) prefetch<kPanelRows*(Minimum ? 4 : 2)>(w);
    w += kPanelRows * (Minimum ? 4 : 2);
    for (int part = 0; part < parts; ++part, ++g) {
      const std::ptrdiff_t index = static_cast<std::ptrdiff_t>(g) * q.stride + token;
      const float *scales = q.scales + index, *sums = q.sums + index;
      if (fresh) prefetch<Blocks * 1024>(w);
      for (int v = 0; v < kVectors; ++v) {
        S::I sum[M];
        S::template dot_int8<M, Blocks>(w + v * 4 * S::width, codes, stride, sum);
        if constexpr (S::int8_zero != 0) subtract_zero<M>(sum, S::int8_zero, q.totals + index);
        const S::F row_scale = S::load_half(row_scales + v * S::width);
        S::F minimum;
        if constexpr (Minimum) minimum = S::load_half(minimums + v * S::width);
        for (int m = 0; m < M; ++m) {
          const S::F scale = S::mul(row_scale, S::set1(scales[m]));
          S::F y = S::fma(S::to_float(sum[m]), scale, tile[m][v]);
          if constexpr (Minimum) y = S::fma(minimum, S::set1(sums[m]), y);
          tile[m][v] = y;
        }
      }
      w += Blocks * 1024;
      codes += Blocks * hasten::kBlock;
    }
  }
  finish_tile<M>(args, panel, token, tile);
}

template <int M, int Blocks>
void integer_tile(const LinearArgs& args, int panel, int token, bool fresh) {
  const bool minimum = args.weight.minimum;
  if (args.weight.format == Format::int8) {
    return minimum ? int8_tile<M, Blocks, true>(args, panel, token, fresh)
                   : int8_tile<M, Blocks, false>(args, panel, token, fresh);
  }
  return minimum ? int4_tile<M, Blocks, true>(args, panel, token, fresh)
                 : int4_tile<M, Blocks, false>(args, panel, token, fresh);
}

template <int M>
void one_tile(const LinearArgs& args, int panel, int token, bool fresh) {
  switch (args.weight.format) {
    case Format::f32:
      return float_tile<float, M>(args, panel, token, fresh);
    case Format::bf16:
      return float_tile<std::uint16_t, M>(args, panel, token, fresh);
    case Format::int8:
    case Format::int4:
      return args.q.group == 64 ? integer_tile<M, 2>(args, panel, token, fresh)
                                : integer_tile<M, 1>(args, panel, token, fresh);
  }
}

// The largest tile that fits, again and again; the remainder takes smaller ones.
template <int M>
void all_tiles(const LinearArgs& args, int panel, int token, int token_end, bool fresh = true) {
  for (; token + M <= token_end; token += M) {
    one_tile<M>(args, panel, token, fresh);
    fresh = false;
  }
  if constexpr (M > 1) {
    if (token < token_end) all_tiles<M / 2>(args, panel, token, token_end, fresh);
  }
}

void linear(const LinearArgs& args, int panel_begin, int panel_end, int token_begin,
            int token_end) {
  const bool is_float = args.weight.format == Format::f32 || args.weight.format == Format::bf16;
  for (int panel = panel_begin; panel < panel_end; ++panel) {
    if (is_float) {
      all_tiles<Simd::float_tile>(args, panel, token_begin, token_end);
    } else {
      all_tiles<Simd::tile>(args, panel, token_begin, token_end);
    }
  }
}

}  // namespace
