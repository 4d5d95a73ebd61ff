#include "matrix.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <utility>

namespace hasten {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLine = 64;

// Zeroed pages. Under AddressSanitizer they come from the heap, one piece for each user, so that it
// notices an access past the end.
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kSlab = 0;

void* reserve(std::size_t bytes) {
  void* place = ::operator new(bytes, std::align_val_t{kLine});
  return std::memset(place, 0, bytes);
}

void release(void* place, std::size_t) { ::operator delete(place, std::align_val_t{kLine}); }
#else
constexpr std::size_t kSlab = std::size_t{32} << 20;

void* reserve(std::size_t bytes) {
  void* place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) throw std::bad_alloc();
  return place;
}

void release(void* place, std::size_t bytes) { munmap(place, bytes); }
#endif

int padded_columns(Format format, int columns) {
  const bool is_float = format == Format::f32 || format == Format::bf16;
  return is_float ? columns : (columns + kBlock - 1) / kBlock * kBlock;
}

std::size_t scale_bytes(const MatrixView& view) { return kPanelRows * (view.minimum ? 4 : 2); }

std::size_t code_bytes(Format format, std::size_t columns) {
  return format == Format::int4 ? columns * kPanelRows / 2 : columns * kPanelRows;
}

MatrixView describe(Format format, int rows, int columns, int group, bool minimum) {
  MatrixView view{format, minimum, rows, columns, padded_columns(format, columns),
                  group,  nullptr, 0};
  const auto padded = static_cast<std::size_t>(view.padded);
  switch (format) {
    case Format::f32:
      view.panel_bytes = padded * kPanelRows * 4;
      break;
    case Format::bf16:
      view.panel_bytes = padded * kPanelRows * 2;
      break;
    case Format::int8:
    case Format::int4:
      view.panel_bytes = padded / group * (scale_bytes(view) + code_bytes(format, group));
      break;
  }
  return view;
}

// Sets the nibbles of 4 neighbouring columns, which are zero so far.
void merge_columns(std::uint8_t* place, std::uint32_t nibbles) {
  std::uint32_t columns;
  std::memcpy(&columns, place, 4);
  columns |= nibbles;
  std::memcpy(place, &columns, 4);
}

}  // namespace

Memory::Memory(std::size_t bytes) : data_(nullptr), bytes_(bytes) {
  if (bytes == 0) return;
  const bool huge = bytes >= kHugePage;
  reserved_ = huge ? bytes + kHugePage : bytes;
  void* place = reserve(reserved_);
  base_ = data_ = static_cast<std::uint8_t*>(place);
  if (huge) {
    data_ += (kHugePage - reinterpret_cast<std::uintptr_t>(place) % kHugePage) % kHugePage;
    madvise(data_, bytes, MADV_HUGEPAGE);
  }
}

Memory::~Memory() {
  if (base_ != nullptr) release(base_, reserved_);
}

Memory::Memory(Memory&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)),
      data_(std::exchange(other.data_, nullptr)),
      reserved_(std::exchange(other.reserved_, 0)),
      bytes_(std::exchange(other.bytes_, 0)) {}

std::uint8_t* Arena::take(std::size_t bytes) {
  const std::size_t size = (bytes + kLine - 1) / kLine * kLine;
  if (slabs_.empty() || used_ + size > slabs_.back().bytes()) {
    slabs_.emplace_back(size > kSlab ? size : kSlab);
    used_ = 0;
  }
  std::uint8_t* place = slabs_.back().data() + used_;
  used_ += size;
  return place;
}

Matrix::Matrix(std::shared_ptr<Arena> arena, Format format, int rows, int columns, int group,
               bool minimum)
    : view_(describe(format, rows, columns, group, minimum)),
      arena_(std::move(arena)),
      data_(arena_->take(bytes())) {
  view_.data = data_;
}

std::size_t Matrix::header_bytes() const { return scale_bytes(view_); }

std::size_t Matrix::group_bytes() const {
  return header_bytes() + code_bytes(view_.format, view_.group);
}

void Matrix::place_float(const float* values, std::span<const std::int32_t> target) {
  for (const std::int32_t row : target) {
    const int lane = row % kPanelRows;
    if (view_.format == Format::f32) {
      auto* out = reinterpret_cast<float*>(panel(row)) + lane;
      for (int k = 0; k < view_.columns; ++k) out[k * kPanelRows] = values[k];
    } else {
      auto* out = reinterpret_cast<std::uint16_t*>(panel(row)) + lane;
      for (int k = 0; k < view_.columns; ++k) out[k * kPanelRows] = float_to_bf16(values[k]);
    }
    values += view_.columns;
  }
}

void Matrix::place_bf16(const std::uint16_t* values, std::span<const std::int32_t> target) {
  for (const std::int32_t row : target) {
    auto* out = reinterpret_cast<std::uint16_t*>(panel(row)) + row % kPanelRows;
    for (int k = 0; k < view_.columns; ++k) out[k * kPanelRows] = values[k];
    values += view_.columns;
  }
}

void Matrix::place_int8(const std::int8_t* codes, const std::uint16_t* scales,
                        const std::uint16_t* minimums, std::span<const std::int32_t> target) {
  const int groups = view_.padded / view_.group;
  for (const std::int32_t row : target) {
    const int lane = row % kPanelRows;
    std::uint8_t* place = panel(row);
    for (int g = 0; g < groups; ++g, place += group_bytes()) {
      std::memcpy(place + 2 * lane, scales + g, 2);
      if (view_.minimum) std::memcpy(place + 2 * (kPanelRows + lane), minimums + g, 2);
      std::uint8_t* out = place + header_bytes() + 4 * lane;
      for (int k = 0; k < view_.group; k += 4, out += 4 * kPanelRows) {
        for (int i = 0; i < 4; ++i) out[i] = static_cast<std::uint8_t>(codes[k + i] + 128);
      }
      codes += view_.group;
    }
    scales += groups;
    if (view_.minimum) minimums += groups;
  }
}

void Matrix::place_int4(const std::uint8_t* codes, const std::uint16_t* scales,
                        const std::uint16_t* minimums, std::span<const std::int32_t> target) {
  const int groups = view_.padded / view_.group;
  constexpr int kHalf = kBlock / 2;
  for (const std::int32_t row : target) {
    const int lane = row % kPanelRows;
    const int shift = lane < kPanelRows / 2 ? 0 : 4;
    std::uint8_t* place = panel(row);
    for (int g = 0; g < groups; ++g, place += group_bytes()) {
      std::memcpy(place + 2 * lane, scales + g, 2);
      if (view_.minimum) std::memcpy(place + 2 * (kPanelRows + lane), minimums + g, 2);
      std::uint8_t* out = place + header_bytes() + 4 * (lane % (kPanelRows / 2));
      // Byte j of a block holds column j (low) and j + 16 (high nibble): 4 source bytes make 4
      // columns here and 4 columns 256 bytes further on.
      for (int block = 0; block < view_.group; block += kBlock, codes += kHalf, out += 512) {
        for (int j = 0; j < kHalf; j += 4) {
          std::uint32_t both;
          std::memcpy(&both, codes + j, 4);
          merge_columns(out + 16 * j, (both & 0x0f0f0f0fu) << shift);
          merge_columns(out + 16 * j + 256, (both >> 4 & 0x0f0f0f0fu) << shift);
        }
      }
    }
    scales += groups;
    if (view_.minimum) minimums += groups;
  }
}

void Matrix::unpack_row(int row, float* out) const {
  const int lane = row % kPanelRows;
  const std::uint8_t* place = panel(row);
  if (view_.format == Format::f32) {
    const auto* values = reinterpret_cast<const float*>(place) + lane;
    for (int k = 0; k < view_.columns; ++k) out[k] = values[k * kPanelRows];
    return;
  }
  if (view_.format == Format::bf16) {
    const auto* values = reinterpret_cast<const std::uint16_t*>(place) + lane;
    for (int k = 0; k < view_.columns; ++k) {
      const std::uint32_t bits = static_cast<std::uint32_t>(values[k * kPanelRows]) << 16;
      std::memcpy(out + k, &bits, 4);
    }
    return;
  }
  for (int first = 0; first < view_.columns; first += view_.group, place += group_bytes()) {
    const auto* scales = reinterpret_cast<const std::uint16_t*>(place);
    const float scale = half_to_float(scales[lane]);
    const float minimum = view_.minimum ? half_to_float(scales[kPanelRows + lane]) : 0.0f;
    const std::uint8_t* codes = place + header_bytes();
    for (int i = 0; i < view_.group && first + i < view_.columns; ++i) {
      int code;
      if (view_.format == Format::int8) {
        code = codes[4 * kPanelRows * (i / 4) + 4 * lane + i % 4] - 128;
      } else {
        const std::uint8_t both = codes[64 * (i / 4) + 4 * (lane % 16) + i % 4];
        code = lane < 16 ? both & 15 : both >> 4;
        if (!view_.minimum) code -= 8;
      }
      out[first + i] = static_cast<float>(code) * scale + minimum;
    }
  }
}

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fff);
  std::uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000u | (magnitude & 0x3ff) << 13;
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &value, 4);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::uint16_t float_to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace hasten
