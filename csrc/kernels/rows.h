// Kernels that work on one row of activations at a time.
#pragma once

#include "kernels.h"
#include "math.h"

namespace {

void rms_norm(const float* x, const float* weight, float eps, int n, float* y) {
  using S = Simd;
  S::F squares = S::zero();
  int i = 0;
  for (; i + S::width <= n; i += S::width) {
    const S::F v = S::load(x + i);
    squares = S::fma(v, v, squares);
  }
  float sum = S::reduce_add(squares);
  for (; i < n; ++i) sum += x[i] * x[i];
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for (i = 0; i + S::width <= n; i += S::width) {
    S::store(y + i, S::mul(S::mul(S::load(x + i), S::set1(inverse)), S::load(weight + i)));
  }
  for (; i < n; ++i) y[i] = x[i] * inverse * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int n,
                float* y) {
  using S = Simd;
  S::F values = S::zero();
  int i = 0;
  for (; i + S::width <= n; i += S::width) values = S::add(values, S::load(x + i));
  float sum = S::reduce_add(values);
  for (; i < n; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(n);
  S::F squares = S::zero();
  for (i = 0; i + S::width <= n; i += S::width) {
    const S::F v = S::sub(S::load(x + i), S::set1(mean));
    squares = S::fma(v, v, squares);
  }
  float square = S::reduce_add(squares);
  for (; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0f / __builtin_sqrtf(square / static_cast<float>(n) + eps);
  for (i = 0; i + S::width <= n; i += S::width) {
    const S::F v = S::mul(S::sub(S::load(x + i), S::set1(mean)), S::set1(inverse));
    S::store(y + i, S::add(S::mul(v, S::load(weight + i)), S::load(bias + i)));
  }
  for (; i < n; ++i) y[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

// Below the smallest normal number 127 / x overflows; so small a group is zero for all purposes.
constexpr float kTiny = 1e-30f;

// One full group: scale = max |x| / 127, codes rounded to nearest.
inline void quantize_group(const float* x, const hasten::QuantizedView& q, std::int8_t* codes,
                           std::ptrdiff_t index) {
  using S = Simd;
  S::F largest = S::zero();
  for (int i = 0; i < q.group; i += S::width) largest = S::max(largest, S::abs(S::load(x + i)));
  const float amax = S::reduce_max(largest);
  const bool tiny = !(amax > kTiny);
  const S::F inverse = S::set1(tiny ? 0.0f : 127.0f / amax);
  S::I total = S::zero_int();
  for (int i = 0; i < q.group; i += S::width) {
    total = S::add_int(total, S::store_int8(codes + i, S::mul(S::load(x + i), inverse)));
  }
  const float scale = tiny ? 0.0f : amax / 127.0f;
  q.totals[index] = S::reduce_add_int(total);
  q.scales[index] = scale;
  q.sums[index] = scale * static_cast<float>(q.totals[index]);
}

void quantize(const float* x, int n, const hasten::QuantizedView& q, int token) {
  constexpr int kLargestGroup = 64;
  std::int8_t* codes = q.codes + static_cast<std::ptrdiff_t>(token) * q.padded;
  for (int g = 0; g < q.groups; ++g) {
    const int begin = g * q.group;
    const std::ptrdiff_t index = static_cast<std::ptrdiff_t>(g) * q.stride + token;
    const int present = n - begin;
    if (present >= q.group) {
      quantize_group(x + begin, q, codes + begin, index);
    } else {
      alignas(64) float padded[kLargestGroup] = {};
      for (int i = 0; i < present; ++i) padded[i] = x[begin + i];
      quantize_group(padded, q, codes + begin, index);
    }
  }
}

float quantize_row(const float* x, int n, std::int8_t* codes) {
  using S = Simd;
  const int whole = n / S::width * S::width;
  alignas(64) float rest[S::width] = {};
  for (int i = whole; i < n; ++i) rest[i - whole] = x[i];
  S::F largest = S::abs(S::load(rest));
  for (int i = 0; i < whole; i += S::width) largest = S::max(largest, S::abs(S::load(x + i)));
  const float amax = S::reduce_max(largest);
  const bool tiny = !(amax > kTiny);
  const S::F inverse = S::set1(tiny ? 0.0f : 127.0f / amax);
  for (int i = 0; i < whole; i += S::width) {
    S::store_int8(codes + i, S::mul(S::load(x + i), inverse));
  }
  alignas(64) std::int8_t tail[S::width];
  S::store_int8(tail, S::mul(S::load(rest), inverse));
  for (int i = whole; i < n; ++i) codes[i] = tail[i - whole];
  return tiny ? 0.0f : amax / 127.0f;
}

void rotate(const float* x, const float* cosine, const float* sine, int half, int dim, float* y) {
  using S = Simd;
  const float *low = x, *high = x + half;
  int i = 0;
  for (; i + S::width <= half; i += S::width) {
    const S::F a = S::load(low + i), b = S::load(high + i);
    const S::F c = S::load(cosine + i), s = S::load(sine + i);
    S::store(y + i, S::sub(S::mul(a, c), S::mul(b, s)));
    S::store(y + half + i, S::add(S::mul(b, c), S::mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = low[i], b = high[i];
    y[i] = a * cosine[i] - b * sine[i];
    y[half + i] = b * cosine[i] + a * sine[i];
  }
  for (i = 2 * half; i < dim; ++i) y[i] = x[i];
}

void dequantize(const hasten::QuantizedView& q, int token, int n, float* y) {
  using S = Simd;
  const std::int8_t* codes = q.codes + static_cast<std::ptrdiff_t>(token) * q.padded;
  for (int g = 0; g * q.group < n; ++g) {
    const float scale = q.scales[static_cast<std::ptrdiff_t>(g) * q.stride + token];
    const int begin = g * q.group, end = begin + q.group < n ? begin + q.group : n;
    int i = begin;
    for (; i + S::width <= end; i += S::width) {
      S::store(y + i, S::mul(S::load(codes + i), S::set1(scale)));
    }
    for (; i < end; ++i) y[i] = static_cast<float>(codes[i]) * scale;
  }
}

// y = function(x) lane by lane; the last few values in a padded vector.
template <class Function>
void map_row(const float* x, int n, float* y, Function function) {
  using S = Simd;
  int i = 0;
  for (; i + S::width <= n; i += S::width) S::store(y + i, function(S::load(x + i)));
  if (i < n) {
    alignas(64) float rest[S::width] = {};
    for (int j = i; j < n; ++j) rest[j - i] = x[j];
    S::store(rest, function(S::load(rest)));
    for (int j = i; j < n; ++j) y[j] = rest[j - i];
  }
}

// y = activation(gate) * up
template <class Activation>
void gate_row(const float* gate, const float* up, int n, float* y, Activation activation) {
  using S = Simd;
  int i = 0;
  for (; i + S::width <= n; i += S::width) {
    S::store(y + i, S::mul(activation(S::load(gate + i)), S::load(up + i)));
  }
  if (i < n) {
    alignas(64) float g[S::width] = {}, u[S::width] = {};
    for (int j = i; j < n; ++j) {
      g[j - i] = gate[j];
      u[j - i] = up[j];
    }
    S::store(g, S::mul(activation(S::load(g)), S::load(u)));
    for (int j = i; j < n; ++j) y[j] = g[j - i];
  }
}

void silu_mul(const float* gate, const float* up, int n, float* y) {
  gate_row(gate, up, n, y, [](Simd::F x) { return silu(x); });
}

void gelu_mul(const float* gate, const float* up, int n, float* y) {
  gate_row(gate, up, n, y, [](Simd::F x) { return gelu_tanh(x); });
}

void gelu_row(const float* x, int n, float* y) {
  map_row(x, n, y, [](Simd::F v) { return gelu(v); });
}

void gelu_tanh_row(const float* x, int n, float* y) {
  map_row(x, n, y, [](Simd::F v) { return gelu_tanh(v); });
}

void scale(const float* x, float factor, int n, float* y) {
  for (int i = 0; i < n; ++i) y[i] = x[i] * factor;
}

void softcap(const float* x, float cap, int n, float* y) {
  map_row(x, n, y, [cap](Simd::F v) { return softcap(v, cap); });
}

void add(const float* a, const float* b, int n, float* y) {
  using S = Simd;
  int i = 0;
  for (; i + S::width <= n; i += S::width) S::store(y + i, S::add(S::load(a + i), S::load(b + i)));
  for (; i < n; ++i) y[i] = a[i] + b[i];
}

// `exp` returns e^-87 for all that is less, also for tokens that must not come: a little more than
// that is subtracted, which changes nothing of a weight that counts.
inline Simd::F softmax_weight(Simd::F x, float peak, float scale) {
  using S = Simd;
  const S::F y = exp(S::mul(S::sub(x, S::set1(peak)), S::set1(scale)));
  return S::max(S::sub(y, S::set1(1.7e-38f)), S::zero());
}

void softmax_weights(const float* x, float peak, float scale, int n, float* y, double* sums) {
  using S = Simd;
  for (int begin = 0; begin < n; begin += hasten::kSumBlock) {
    const int end = n - begin < hasten::kSumBlock ? n : begin + hasten::kSumBlock;
    S::F sum = S::zero();
    int i = begin;
    for (; i + S::width <= end; i += S::width) {
      const S::F weight = softmax_weight(S::load(x + i), peak, scale);
      S::store(y + i, weight);
      sum = S::add(sum, weight);
    }
    if (i < end) {
      alignas(64) float rest[S::width];
      for (int j = 0; j < S::width; ++j) rest[j] = i + j < end ? x[i + j] : -__builtin_inff();
      const S::F weight = softmax_weight(S::load(rest), peak, scale);
      S::store(rest, weight);
      sum = S::add(sum, weight);
      for (int j = i; j < end; ++j) y[j] = rest[j - i];
    }
    *sums++ = S::reduce_add(sum);
  }
}

}  // namespace
