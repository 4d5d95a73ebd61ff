// LoRA adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) beside the products they change:
// y = W x + scale * B (A x), with another A and B for each sequence of a batch, as in Punica (Chen
// et al. 2023) and S-LoRA (Sheng et al. 2023). A op of its own computes A x ("shrink"); the product
// computes B (A x) ("expand") for the panels and tokens in hand and adds it before its epilogue.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "program.h"

namespace hasten {

inline constexpr int kLoraChunk = 12;         // tokens that are shrunk together
inline constexpr int kDeltaFloats = 1 << 14;  // what a thread expands at once

// A and B of one adapter for one product, packed.
class LoraPair {
 public:
  // a: [rank][columns]. b: [rows][rank], rows in the panel order of the product. scales: [rank].
  // spans: for each 16 rows of b the columns [begin, end) outside of which it is zero.
  LoraPair(Format format, int rank, int columns, int rows, const float* a, const float* b,
           const float* scales, const std::int32_t* spans);

  Format format() const { return format_; }
  int rank() const { return rank_; }
  int columns() const { return columns_; }
  int rows() const { return rows_; }
  std::span<const LoraPanel> shrink() const { return shrink_; }
  std::span<const LoraPanel> expand() const { return expand_; }
  const float* scales() const { return scales_.data(); }
  std::size_t bytes() const { return memory_.bytes(); }

 private:
  std::uint8_t* pack(const float* values, int rows, int stride, int first, int columns,
                     std::uint8_t* place) const;

  Format format_;
  int rank_, columns_, rows_;
  std::vector<LoraPanel> shrink_, expand_;
  std::vector<float> scales_;  // padded to whole panels
  Memory memory_;
};

// The adapters of one product by slot, and the buffer that A x goes through.
struct LoraSite {
  const Kernels* kernels;
  const Buffer* in;
  const Buffer* shrunk;
  int rows = 0;  // of the product
  std::vector<std::shared_ptr<const LoraPair>> pairs;

  // B (A x) of the panels and tokens in scratch, and in delta[token - token_begin] where each
  // token's rows begin, null without an adapter. False if no token has one here.
  bool expand(const Step& step, int panel_begin, int panel_end, int token_begin, int token_end,
              float* scratch, const float** delta) const;
};

struct LoraShrinkOp final : Op {
  const LoraSite* site;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;

 private:
  int parts(const Step& step) const;
};

}  // namespace hasten
