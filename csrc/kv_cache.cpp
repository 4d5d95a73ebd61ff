#include "kv_cache.h"

namespace hasten {
namespace {

// Values are read in steps of two vectors of the widest instruction set.
constexpr int kDimStep = 32;

int padded(int dim) { return (dim + kDimStep - 1) / kDimStep * kDimStep; }

// Element i goes to out[i * stride].
template <class Element>
void scatter(const Element* x, int n, std::uint8_t* place, int stride) {
  auto* out = reinterpret_cast<Element*>(place);
  for (int i = 0; i < n; ++i) out[i * stride] = x[i];
}

// Writes n values, element i at i * stride; returns the scale of int8 codes.
float convert(const Kernels& kernels, KvFormat format, const float* x, int n, std::uint8_t* place,
              int stride) {
  switch (format) {
    case KvFormat::f32:
      scatter(x, n, place, stride);
      return 1.0f;
    case KvFormat::bf16: {
      std::uint16_t values[kMaxHeadDim];
      for (int i = 0; i < n; ++i) values[i] = float_to_bf16(x[i]);
      scatter(values, n, place, stride);
      return 1.0f;
    }
    case KvFormat::int8:
      break;
  }
  std::int8_t codes[kMaxHeadDim];
  const float scale = kernels.quantize_row(x, n, codes);
  scatter(codes, n, place, stride);
  return scale;
}

}  // namespace

KvCache::KvCache(KvFormat format, int layers, int blocks, int kv_heads, int head_dim)
    : format_(format),
      layers_(layers),
      blocks_(blocks),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      padded_dim_(padded(head_dim)),
      layout_(kv_layout(format, head_dim, padded_dim_)),
      memory_(static_cast<std::size_t>(layers) * blocks * kv_heads * layout_.bytes) {}

void KvCache::write(const Kernels& kernels, int layer, int block, int kv_head, int slot,
                    const float* key, const float* value) const {
  std::uint8_t* place = head(layer, block, kv_head);
  const std::size_t element = kv_element_bytes(format_);
  const float key_scale =
      convert(kernels, format_, key, head_dim_, place + slot * element, kKvBlock);
  std::uint8_t* row = place + layout_.values + slot * element * padded_dim_;
  const float value_scale = convert(kernels, format_, value, head_dim_, row, 1);
  if (format_ == KvFormat::int8) {
    reinterpret_cast<float*>(place + layout_.key_scales)[slot] = key_scale;
    reinterpret_cast<float*>(place + layout_.value_scales)[slot] = value_scale;
  }
}

}  // namespace hasten
