// The contract of every kernel: one table of functions for each instruction set.
//
// The same templates (linear.h, attention.h, rows.h) are instantiated once per instruction set,
// over the primitives of simd_<isa>.h, in isa_<isa>.cpp. Every reduction runs in an order fixed by
// the position of its terms alone, so a result never depends on the tile or thread that computed
// it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hasten {

enum class Format { f32, bf16, int8, int4 };
enum class KvFormat { f32, bf16, int8 };
enum class Epilogue { store, add, silu_mul, gelu_mul, gelu, gelu_tanh };

inline constexpr int kPanelRows = 32;  // rows of a weight panel
inline constexpr int kBlock = 32;      // columns a dot primitive consumes at once
inline constexpr int kKvBlock = 32;    // positions of a KV block
inline constexpr int kMaxHeadDim = 512;
inline constexpr int kSumBlock = 512;  // values of a sum of softmax_weights
inline constexpr int kQueryTile = 4;   // queries of one kv head that attention handles together
inline constexpr int kLoraRows = 16;   // rows of a panel of a LoRA matrix: half a weight panel

// A weight matrix in panels of 32 rows, columns padded to a multiple of 32 for integer formats.
//   f32, bf16   per panel: [column][32 rows]
//   int8        per panel and group: 32 half-precision scales, 32 minimums if it has them, then per
//               4 columns [32 rows][4 columns] of code + 128, codes -128 to 127
//   int4        the same scales and minimums, then per 4 columns [16 rows][4 columns]: low nibbles
//               are rows 0-15, high nibbles rows 16-31
struct MatrixView {
  Format format;
  bool minimum;
  int rows, columns, padded, group;
  const std::uint8_t* data;
  std::size_t panel_bytes;
};

// Activations of several tokens as int8 codes with a scale per group of columns. What belongs to a
// group lies side by side for neighbouring tokens, as a tile reads it.
struct QuantizedView {
  std::int8_t* codes;    // [rows][padded]
  float* scales;         // [groups][stride]
  float* sums;           // [groups][stride]: scale * (sum of codes), for minimums
  std::int32_t* totals;  // [groups][stride]: sum of codes, for constant zero points
  int stride, padded, group, groups;
};

struct LinearArgs {
  MatrixView weight;
  const float* x;     // [tokens][weight.columns], for f32 and bf16 weights
  QuantizedView q;    // for integer weights; q.group divides weight.group
  const float* bias;  // in panel order, or null
  float* y;           // [tokens][y_width]
  int y_width;
  Epilogue epilogue;  // gated: rows 0-15 of a panel are gates, 16-31 their factors
  float scale;        // of the sum with the bias, before the epilogue
  // What LoRA adapters add before the epilogue, or null: delta[t - delta_token] holds token t's
  // rows from panel delta_panel on, and is null for a token without an adapter.
  const float* const* delta = nullptr;
  int delta_token = 0, delta_panel = 0;
};

// 16 rows of a LoRA matrix over the columns [first, first + columns) of its input: [column][16].
struct LoraPanel {
  const std::uint8_t* data;
  int first, columns;
};

// y[t][row] = sum over columns of W[row][column] * x[t][column].
struct LoraArgs {
  Format format;            // f32 or bf16
  const LoraPanel* panels;  // panel p yields the rows 16 p .. 16 p + 15
  int count;
  const float* scales;    // shrink: of every row, which they multiply
  const float* const* x;  // of each token
  float* const* y;        // of each token
  int tokens;
};

inline bool is_gated(Epilogue epilogue) {
  return epilogue == Epilogue::silu_mul || epilogue == Epilogue::gelu_mul;
}

struct AttentionArgs {
  const float* query[kQueryTile];  // each [head_dim]
  float* out[kQueryTile];          // each [head_dim]
  int first[kQueryTile];           // each query sees the positions first .. length - 1
  int length[kQueryTile];
  int queries;
  const std::int32_t* blocks;  // block table of the sequence
  const std::uint8_t* cache;   // of this layer and kv head, block 0
  std::size_t block_stride;    // bytes from a block to the next
  KvFormat format;
  int head_dim, padded_dim;
  float scale;
  float cap;      // scores become cap * tanh(score / cap); 0 leaves them
  float* scores;  // scratch [queries][score_stride]
  std::ptrdiff_t score_stride;
};

// Where the parts of one KV block of one head lie: keys [dim][32], values [32][padded_dim], and
// for int8 32 key scales and 32 value scales (float).
struct KvLayout {
  std::size_t key_scales, values, value_scales, bytes;
};

inline std::size_t kv_element_bytes(KvFormat format) {
  return format == KvFormat::f32 ? 4 : format == KvFormat::bf16 ? 2 : 1;
}

inline KvLayout kv_layout(KvFormat format, int dim, int padded_dim) {
  const std::size_t element = kv_element_bytes(format);
  const std::size_t scale_bytes = format == KvFormat::int8 ? kKvBlock * sizeof(float) : 0;
  KvLayout layout{};
  layout.key_scales = static_cast<std::size_t>(dim) * kKvBlock * element;
  layout.values = layout.key_scales + scale_bytes;
  layout.value_scales = layout.values + static_cast<std::size_t>(padded_dim) * kKvBlock * element;
  layout.bytes = (layout.value_scales + scale_bytes + 63) / 64 * 64;
  return layout;
}

struct Kernels {
  const char* name;
  // y for panels [panel_begin, panel_end) and tokens [token_begin, token_end).
  void (*linear)(const LinearArgs&, int panel_begin, int panel_end, int token_begin, int token_end);
  // One row of n values: y = x / sqrt(mean(x^2) + eps) * weight.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* y);
  // The same about the mean: y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n,
                     float* y);
  // One row of n values into row `token` of q, zero-padded.
  void (*quantize)(const float* x, int n, const QuantizedView& q, int token);
  // y = gate / (1 + exp(-gate)) * up.
  void (*silu_mul)(const float* gate, const float* up, int n, float* y);
  // y = x / 2 * (1 + erf(x / sqrt(2))), and the approximation of it by tanh.
  void (*gelu)(const float* x, int n, float* y);
  void (*gelu_tanh)(const float* x, int n, float* y);
  // y = gelu_tanh(gate) * up.
  void (*gelu_mul)(const float* gate, const float* up, int n, float* y);
  // y = x * factor; x and y may be one.
  void (*scale)(const float* x, float factor, int n, float* y);
  // y = cap * tanh(x / cap); x and y may be one.
  void (*softcap)(const float* x, float cap, int n, float* y);
  void (*add)(const float* a, const float* b, int n, float* y);
  // y = e^((x - peak) * scale), 0 below e^-87, and the sum of every kSumBlock of them.
  void (*softmax_weights)(const float* x, float peak, float scale, int n, float* y, double* sums);
  // Rotates dimension i with dimension i + half by the angles' cosines and sines [half] (Su et al.
  // 2021, half-split as in GPT-NeoX); dimensions past 2 * half pass through.
  void (*rotate)(const float* x, const float* cosine, const float* sine, int half, int dim,
                 float* y);
  // n values as int8 codes; returns their scale, max |x| / 127.
  float (*quantize_row)(const float* x, int n, std::int8_t* codes);
  void (*attention)(const AttentionArgs&);
  // Row `token` of q as float: n values.
  void (*dequantize)(const QuantizedView& q, int token, int n, float* y);
  void (*lora_shrink)(const LoraArgs&);
  void (*lora_expand)(const LoraArgs&);
  // Integer multiply-adds (2 operations each) of `rounds` register-resident dot products.
  double (*int8_probe)(long rounds);
  double (*fp32_probe)(long rounds);
};

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();

}  // namespace hasten
