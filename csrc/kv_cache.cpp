#include "kv_cache.h"

#include <cmath>

namespace hasten {
namespace {

// Values are read in steps of two vectors of the widest instruction set.
constexpr int kDimStep = 32;

int padded(int dim) { return (dim + kDimStep - 1) / kDimStep * kDimStep; }

// Element i goes to out[i * stride]; int8 returns its scale.
float convert(KvFormat format, const float* x, int n, std::uint8_t* place, int stride) {
  switch (format) {
    case KvFormat::f32: {
      auto* out = reinterpret_cast<float*>(place);
      for (int i = 0; i < n; ++i) out[i * stride] = x[i];
      return 1.0f;
    }
    case KvFormat::bf16: {
      auto* out = reinterpret_cast<std::uint16_t*>(place);
      for (int i = 0; i < n; ++i) out[i * stride] = float_to_bf16(x[i]);
      return 1.0f;
    }
    case KvFormat::int8:
      break;
  }
  float largest = 0.0f;
  for (int i = 0; i < n; ++i) largest = std::fmax(largest, std::fabs(x[i]));
  const bool tiny = !(largest > 1e-30f);
  const float inverse = tiny ? 0.0f : 127.0f / largest;
  auto* out = reinterpret_cast<std::int8_t*>(place);
  for (int i = 0; i < n; ++i) {
    out[i * stride] = static_cast<std::int8_t>(std::lrintf(x[i] * inverse));
  }
  return tiny ? 0.0f : largest / 127.0f;
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

void KvCache::write(int layer, int block, int kv_head, int slot, const float* key,
                    const float* value) const {
  std::uint8_t* place = head(layer, block, kv_head);
  const std::size_t element = kv_element_bytes(format_);
  const float key_scale = convert(format_, key, head_dim_, place + slot * element, kKvBlock);
  std::uint8_t* row = place + layout_.values + slot * element * padded_dim_;
  const float value_scale = convert(format_, value, head_dim_, row, 1);
  if (format_ == KvFormat::int8) {
    reinterpret_cast<float*>(place + layout_.key_scales)[slot] = key_scale;
    reinterpret_cast<float*>(place + layout_.value_scales)[slot] = value_scale;
  }
}

}  // namespace hasten
