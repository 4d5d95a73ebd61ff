#include "lora.h"

#include <algorithm>
#include <cstring>

namespace hasten {
namespace {

int panels_of(int rows) { return (rows + kLoraRows - 1) / kLoraRows; }

std::size_t element_bytes(Format format) { return format == Format::f32 ? 4 : 2; }

std::size_t packed_bytes(Format format, int rank, int columns, int rows,
                         const std::int32_t* spans) {
  std::size_t vectors = static_cast<std::size_t>(panels_of(rank)) * columns;
  for (int p = 0; p < panels_of(rows); ++p) vectors += spans[2 * p + 1] - spans[2 * p];
  return vectors * kLoraRows * element_bytes(format);
}

float* row(const Buffer& buffer, int index) {
  return buffer.data + static_cast<std::ptrdiff_t>(index) * buffer.width;
}

}  // namespace

LoraPair::LoraPair(Format format, int rank, int columns, int rows, const float* a, const float* b,
                   const float* scales, const std::int32_t* spans)
    : format_(format),
      rank_(rank),
      columns_(columns),
      rows_(rows),
      scales_(scales, scales + rank),
      memory_(packed_bytes(format, rank, columns, rows, spans)) {
  scales_.resize(static_cast<std::size_t>(panels_of(rank)) * kLoraRows);
  std::uint8_t* place = memory_.data();
  for (int p = 0; p < panels_of(rank); ++p) {
    shrink_.push_back({place, 0, columns});
    const float* first = a + static_cast<std::ptrdiff_t>(p) * kLoraRows * columns;
    place = pack(first, std::min(kLoraRows, rank - p * kLoraRows), columns, 0, columns, place);
  }
  for (int p = 0; p < panels_of(rows); ++p) {
    const int begin = spans[2 * p], count = spans[2 * p + 1] - begin;
    expand_.push_back({place, begin, count});
    const float* first = b + static_cast<std::ptrdiff_t>(p) * kLoraRows * rank;
    place = pack(first, std::min(kLoraRows, rows - p * kLoraRows), rank, begin, count, place);
  }
}

// [column][16 rows]; rows that do not exist stay zero.
std::uint8_t* LoraPair::pack(const float* values, int rows, int stride, int first, int columns,
                             std::uint8_t* place) const {
  for (int k = 0; k < columns; ++k) {
    for (int r = 0; r < rows; ++r) {
      const float value = values[static_cast<std::ptrdiff_t>(r) * stride + first + k];
      if (format_ == Format::f32) {
        std::memcpy(place + 4 * r, &value, 4);
      } else {
        const std::uint16_t bits = float_to_bf16(value);
        std::memcpy(place + 2 * r, &bits, 2);
      }
    }
    place += kLoraRows * element_bytes(format_);
  }
  return place;
}

bool LoraSite::expand(const Step& step, int panel_begin, int panel_end, int token_begin,
                      int token_end, float* scratch, const float** delta) const {
  constexpr int kRatio = kPanelRows / kLoraRows;
  const int stride = (panel_end - panel_begin) * kPanelRows;
  const AdapterRows& adapted = step.adapted(*in);
  std::fill(delta, delta + (token_end - token_begin), nullptr);
  bool any = false;
  for (const AdapterRows::Group& group : adapted.groups) {
    const LoraPair* pair = pairs[group.slot].get();
    const auto begin = adapted.rows.begin() + group.begin, end = adapted.rows.begin() + group.end;
    const auto first = std::lower_bound(begin, end, token_begin);
    const auto last = std::lower_bound(first, end, token_end);
    if (pair == nullptr || first == last) continue;
    const float* x[kTokenBlock];
    float* y[kTokenBlock];
    int count = 0;
    for (auto token = first; token != last; ++token, ++count) {
      x[count] = row(*shrunk, *token);
      y[count] = scratch + static_cast<std::ptrdiff_t>(*token - token_begin) * stride;
      delta[*token - token_begin] = y[count];
    }
    const int from = panel_begin * kRatio;
    const int to = std::min(panel_end * kRatio, static_cast<int>(pair->expand().size()));
    kernels->lora_expand(
        {pair->format(), pair->expand().data() + from, to - from, nullptr, x, y, count});
    any = true;
  }
  return any;
}

// Few chunks are divided by panels, so that every thread has work.
int LoraShrinkOp::parts(const Step& step) const {
  const int chunks = static_cast<int>(step.adapted(*site->in).chunks.size());
  if (chunks == 0) return 0;
  return std::min(site->shrunk->width / kLoraRows, (4 * step.threads + chunks - 1) / chunks);
}

int LoraShrinkOp::items(const Step& step) const {
  return static_cast<int>(step.adapted(*site->in).chunks.size()) * parts(step);
}

void LoraShrinkOp::run(const Step& step, int item, float* scratch) const {
  const AdapterRows& adapted = step.adapted(*site->in);
  const int count = parts(step), part = item % count;
  const AdapterRows::Group& chunk = adapted.chunks[item / count];
  const LoraPair* pair = site->pairs[chunk.slot].get();
  if (pair == nullptr) return;
  const int panels = static_cast<int>(pair->shrink().size());
  const int begin = part * panels / count, end = (part + 1) * panels / count;
  if (begin == end) return;
  const Buffer& in = *site->in;
  const float* x[kLoraChunk];
  float* y[kLoraChunk];
  int tokens = 0;
  for (int i = chunk.begin; i < chunk.end; ++i, ++tokens) {
    const int token = adapted.rows[i];
    y[tokens] = row(*site->shrunk, token) + begin * kLoraRows;
    x[tokens] =
        in.group > 0 ? scratch + static_cast<std::ptrdiff_t>(tokens) * in.width : row(in, token);
    if (in.group > 0) {
      site->kernels->dequantize(in.quantized, token, in.width, scratch + tokens * in.width);
    }
  }
  site->kernels->lora_shrink({pair->format(), pair->shrink().data() + begin, end - begin,
                              pair->scales() + begin * kLoraRows, x, y, tokens});
}

}  // namespace hasten
