// Primitives for AVX-512 (F, BW, VL, DQ, VNNI): 16 float lanes.
//
// With HASTEN_SIMDE the intrinsics are emulated, so that this path can be tested on machines
// without AVX-512.
#pragma once

#ifdef HASTEN_SIMDE
#include "simde_avx512.h"
#else
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  static constexpr const char* name = "avx512";
  static constexpr int width = 16;
  static constexpr int tile = 8;
  static constexpr int float_tile = 8;
  using F = __m512;
  using I = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F abs(F a) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)));
  }
  static F round(F a) { return _mm512_cvtepi32_ps(_mm512_cvtps_epi32(a)); }
  static F exp2i(F n) {
    const I i = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(i, 23));
  }
  static float reduce_add(F v) {
    alignas(64) float lane[16];
    _mm512_store_ps(lane, v);
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
  }
  static float reduce_max(F v) {
    alignas(64) float lane[16];
    _mm512_store_ps(lane, v);
    for (int half = 8; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    }
    return lane[0];
  }

  static F load(const std::uint16_t* bf16) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
  }
  static F load_half(const std::uint16_t* f16) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(f16)));
  }
  static F load(const std::int8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v));
  }
  static I store_int8(std::int8_t* p, F v) {
    const I i = _mm512_cvtps_epi32(v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(i));
    return i;
  }

  static I zero_int() { return _mm512_setzero_si512(); }
  static I set1_int(std::int32_t v) { return _mm512_set1_epi32(v); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static std::int32_t reduce_add_int(I v) {
    alignas(64) std::int32_t lane[16];
    _mm512_store_si512(lane, v);
    std::int32_t sum = 0;
    for (const std::int32_t value : lane) sum += value;
    return sum;
  }

  static I broadcast4(const std::int8_t* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  // sum += dot products of 4 unsigned by 4 signed bytes in each lane. As assembly, because GCC 12
  // spills accumulators around the intrinsic.
  static void dot4(I& sum, I w, I a) {
#ifdef HASTEN_SIMDE
    sum = _mm512_dpbusd_epi32(sum, w, a);
#else
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
#endif
  }
  // The same with 4 bytes from memory for all lanes.
  static void dot4(I& sum, I w, const std::int8_t* a) {
#ifdef HASTEN_SIMDE
    dot4(sum, w, broadcast4(a));
#else
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(w), "m"(*reinterpret_cast<const std::int8_t (*)[4]>(a)));
#endif
  }

  template <int M, int Blocks>
  static void dot_int4(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&low)[M], I (&high)[M]) {
    const I mask = _mm512_set1_epi8(15);
    for (int m = 0; m < M; ++m) low[m] = high[m] = zero_int();
#pragma GCC unroll 16
    for (int k = 0; k < 8 * Blocks; ++k) {
      const I both = _mm512_loadu_si512(w + 64 * k);
      const I lo = _mm512_and_si512(both, mask);
      const I hi = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const I x = broadcast4(a + m * stride + 4 * k);
        dot4(low[m], lo, x);
        dot4(high[m], hi, x);
      }
    }
  }

  static constexpr int int8_zero = 128;  // that is in the codes of dot_int8
  template <int M, int Blocks>
  static void dot_int8(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&sum)[M]) {
    const std::int8_t* codes_of[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      sum[m] = zero_int();
      codes_of[m] = a + m * stride;
      // Or GCC would compute every address once for all rows of the panel, and spill them.
      asm("" : "+r"(codes_of[m]));
    }
#pragma GCC unroll 16
    for (int k = 0; k < 8 * Blocks; ++k) {
      const I codes = _mm512_loadu_si512(w + 128 * k);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) dot4(sum[m], codes, codes_of[m] + 4 * k);
    }
  }
};

}  // namespace
