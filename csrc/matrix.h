// Weight matrices packed into the panels that kernels.h describes.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "kernels/kernels.h"

namespace hasten {

// Zeroed memory, on huge pages where the system gives them.
class Memory {
 public:
  explicit Memory(std::size_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  Memory& operator=(Memory&&) = delete;
  std::uint8_t* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::uint8_t* base_ = nullptr;  // of the mapping, which is larger where it had to be aligned
  std::uint8_t* data_;
  std::size_t reserved_ = 0, bytes_;
};

// Hands out the memory of many matrices from few large slabs, one after another: weights are
// streamed once a token, and a matrix by itself would be too small for huge pages.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::uint8_t* take(std::size_t bytes);

 private:
  std::vector<Memory> slabs_;
  std::size_t used_ = 0;  // of the last slab
};

class Matrix {
 public:
  // group: columns that share a scale (integer formats only, else 0).
  Matrix(std::shared_ptr<Arena> arena, Format format, int rows, int columns, int group,
         bool minimum);

  const MatrixView& view() const { return view_; }
  std::size_t bytes() const { return view_.panel_bytes * panels(); }
  int panels() const { return (view_.rows + kPanelRows - 1) / kPanelRows; }
  // Columns of activations that share a scale: as fine as the weights' own groups, 64 at most.
  int activation_group() const { return view_.group % 64 == 0 ? 64 : 32; }

  // Each places source row i at row target[i]. The shapes were checked by the caller.
  void place_float(const float* values, std::span<const std::int32_t> target);
  void place_bf16(const std::uint16_t* values, std::span<const std::int32_t> target);
  void place_int8(const std::int8_t* codes, const std::uint16_t* scales,
                  const std::uint16_t* minimums, std::span<const std::int32_t> target);
  void place_int4(const std::uint8_t* codes, const std::uint16_t* scales,
                  const std::uint16_t* minimums, std::span<const std::int32_t> target);

  // All panels, one after another: what a file of packed weights holds.
  std::uint8_t* data() const { return data_; }
  // Back to zeros, as integer codes need it before they are placed.
  void clear() { std::memset(data_, 0, bytes()); }

  // The values of one row as float, for embeddings.
  void unpack_row(int row, float* out) const;

 private:
  std::uint8_t* panel(int row) const { return data_ + row / kPanelRows * view_.panel_bytes; }
  std::size_t group_bytes() const;
  std::size_t header_bytes() const;

  MatrixView view_;
  std::shared_ptr<Arena> arena_;
  std::uint8_t* data_;
};

float half_to_float(std::uint16_t half);
std::uint16_t float_to_bf16(float value);  // to nearest, ties to even; NaN stays NaN

}  // namespace hasten
