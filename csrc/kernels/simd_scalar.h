// Primitives in plain C++: 8 lanes in an array, for any machine and as the readable reference.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  static constexpr const char* name = "scalar";
  static constexpr int width = 8;
  static constexpr int tile = 4;
  static constexpr int float_tile = 4;
  struct F {
    float v[width];
  };
  struct I {
    std::int32_t v[width];
  };

  template <class Function>
  static F lanes(Function function) {
    F r;
    for (int i = 0; i < width; ++i) r.v[i] = function(i);
    return r;
  }
  template <class Function>
  static I int_lanes(Function function) {
    I r;
    for (int i = 0; i < width; ++i) r.v[i] = function(i);
    return r;
  }

  static F zero() { return set1(0.0f); }
  static F set1(float v) {
    return lanes([&](int) { return v; });
  }
  static F load(const float* p) {
    return lanes([&](int i) { return p[i]; });
  }
  static void store(float* p, F v) { std::memcpy(p, v.v, sizeof v.v); }
  static F add(F a, F b) {
    return lanes([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return lanes([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return lanes([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return lanes([&](int i) { return a.v[i] / b.v[i]; });
  }
  static F max(F a, F b) {
    return lanes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F min(F a, F b) {
    return lanes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  // Two roundings: a fused one would be a library call a lane here.
  static F fma(F a, F b, F c) {
    return lanes([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static F abs(F a) {
    return lanes([&](int i) { return std::fabs(a.v[i]); });
  }
  static F round(F a) {
    return lanes([&](int i) { return std::nearbyint(a.v[i]); });
  }
  static F exp2i(F n) {
    return lanes([&](int i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<int>(n.v[i]) + 127) << 23;
      float r;
      std::memcpy(&r, &bits, 4);
      return r;
    });
  }
  static float reduce_add(F v) {
    const float a = (v.v[0] + v.v[4]) + (v.v[2] + v.v[6]);
    const float b = (v.v[1] + v.v[5]) + (v.v[3] + v.v[7]);
    return a + b;
  }
  static float reduce_max(F v) {
    float r = v.v[0];
    for (int i = 1; i < width; ++i) r = v.v[i] > r ? v.v[i] : r;
    return r;
  }

  static F load(const std::uint16_t* bf16) {
    return lanes([&](int i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(bf16[i]) << 16;
      float r;
      std::memcpy(&r, &bits, 4);
      return r;
    });
  }
  static F load_half(const std::uint16_t* f16) {
    return lanes([&](int i) { return half_to_float(f16[i]); });
  }
  static F load(const std::int8_t* p) {
    return lanes([&](int i) { return static_cast<float>(p[i]); });
  }
  static I store_int8(std::int8_t* p, F v) {
    const I r = int_lanes([&](int i) { return static_cast<std::int32_t>(std::nearbyint(v.v[i])); });
    for (int i = 0; i < width; ++i) p[i] = static_cast<std::int8_t>(r.v[i]);
    return r;
  }

  static I zero_int() { return set1_int(0); }
  static I set1_int(std::int32_t v) {
    return int_lanes([&](int) { return v; });
  }
  static I add_int(I a, I b) {
    return int_lanes([&](int i) { return a.v[i] + b.v[i]; });
  }
  static I sub_int(I a, I b) {
    return int_lanes([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F to_float(I v) {
    return lanes([&](int i) { return static_cast<float>(v.v[i]); });
  }
  static std::int32_t reduce_add_int(I v) {
    std::int32_t r = 0;
    for (int i = 0; i < width; ++i) r += v.v[i];
    return r;
  }

  template <int M, int Blocks>
  static void dot_int4(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&low)[M], I (&high)[M]) {
    for (int m = 0; m < M; ++m) low[m] = high[m] = zero_int();
    for (int k = 0; k < 32 * Blocks; ++k) {
      const std::uint8_t* column = w + 64 * (k / 4) + k % 4;
      for (int m = 0; m < M; ++m) {
        for (int i = 0; i < width; ++i) {
          low[m].v[i] += (column[4 * i] & 15) * a[m * stride + k];
          high[m].v[i] += (column[4 * i] >> 4) * a[m * stride + k];
        }
      }
    }
  }

  static constexpr int int8_zero = 128;  // that is in the codes of dot_int8
  template <int M, int Blocks>
  static void dot_int8(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&sum)[M]) {
    for (int m = 0; m < M; ++m) sum[m] = zero_int();
    for (int k = 0; k < 32 * Blocks; ++k) {
      const std::uint8_t* column = w + 128 * (k / 4) + k % 4;
      for (int m = 0; m < M; ++m) {
        for (int i = 0; i < width; ++i) sum[m].v[i] += column[4 * i] * a[m * stride + k];
      }
    }
  }

 private:
  static float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7fff);
    std::uint32_t bits;
    if (magnitude >= 0x7c00) {  // infinity, NaN
      bits = 0x7f800000u | (magnitude & 0x3ff) << 13;
    } else if (magnitude >= 0x400) {
      bits = (magnitude << 13) + ((127u - 15u) << 23);
    } else {  // subnormal: value = magnitude * 2^-24
      const float value = static_cast<float>(magnitude) * 5.9604644775390625e-08f;
      std::memcpy(&bits, &value, 4);
    }
    bits |= sign;
    float r;
    std::memcpy(&r, &bits, 4);
    return r;
  }
};

}  // namespace
