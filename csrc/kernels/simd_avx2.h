// Primitives for AVX2 with FMA and F16C: 8 float lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  static constexpr const char* name = "avx2";
  static constexpr int width = 8;
  static constexpr int tile = 4;        // tokens of an integer tile: 16 registers hold no more
  static constexpr int float_tile = 3;  // tokens of a float tile
  using F = __m256;
  using I = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F round(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // 2^n for integral n in [-126, 127].
  static F exp2i(F n) {
    const I i = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(i, 23));
  }
  static float reduce_add(F v) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static float reduce_max(F v) {
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }

  static F load(const std::uint16_t* bf16) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  }
  static F load_half(const std::uint16_t* f16) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(f16)));
  }
  static F load(const std::int8_t* p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
  }
  // Rounds to the nearest integer and keeps the low byte; |v| <= 127. Returns the integers.
  static I store_int8(std::int8_t* p, F v) {
    const I i = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
    return i;
  }

  static I zero_int() { return _mm256_setzero_si256(); }
  static I set1_int(std::int32_t v) { return _mm256_set1_epi32(v); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static std::int32_t reduce_add_int(I v) {
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
  }

  static I broadcast4(const std::int8_t* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }

  // 32 columns of int4 codes against M tokens. `w` points at the 32 bytes of the first 4 columns,
  // 4 further columns follow every 64 bytes. Adds to `low` (rows of the low nibbles) and `high`.
  // Sums of 8 products of pairs stay below 15 * 127 * 16 = 30480, so 16 bits hold them.
  template <int M>
  static void dot_int4(const std::uint8_t* w, const std::int8_t* const (&a)[M], I (&low)[M],
                       I (&high)[M]) {
    const I mask = _mm256_set1_epi8(15);
    I low16[M], high16[M];
    for (int m = 0; m < M; ++m) low16[m] = high16[m] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      const I both = _mm256_loadu_si256(reinterpret_cast<const I*>(w + 64 * k));
      const I lo = _mm256_and_si256(both, mask);
      const I hi = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const I x = broadcast4(a[m] + 4 * k);
        low16[m] = _mm256_add_epi16(low16[m], _mm256_maddubs_epi16(lo, x));
        high16[m] = _mm256_add_epi16(high16[m], _mm256_maddubs_epi16(hi, x));
      }
    }
    const I ones = _mm256_set1_epi16(1);
    for (int m = 0; m < M; ++m) {
      low[m] = _mm256_add_epi32(low[m], _mm256_madd_epi16(low16[m], ones));
      high[m] = _mm256_add_epi32(high[m], _mm256_madd_epi16(high16[m], ones));
    }
  }

  // The same for int8 codes + 128, 4 further columns every 128 bytes. A byte is split into its two
  // nibbles so that maddubs cannot saturate.
  template <int M>
  static void dot_int8(const std::uint8_t* w, const std::int8_t* const (&a)[M], I (&sum)[M]) {
    const I mask = _mm256_set1_epi8(15);
    I low16[M], high16[M];
    for (int m = 0; m < M; ++m) low16[m] = high16[m] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      const I both = _mm256_loadu_si256(reinterpret_cast<const I*>(w + 128 * k));
      const I lo = _mm256_and_si256(both, mask);
      const I hi = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const I x = broadcast4(a[m] + 4 * k);
        low16[m] = _mm256_add_epi16(low16[m], _mm256_maddubs_epi16(lo, x));
        high16[m] = _mm256_add_epi16(high16[m], _mm256_maddubs_epi16(hi, x));
      }
    }
    const I ones = _mm256_set1_epi16(1), sixteens = _mm256_set1_epi16(16);
    for (int m = 0; m < M; ++m) {
      const I low = _mm256_madd_epi16(low16[m], ones);
      const I high = _mm256_madd_epi16(high16[m], sixteens);
      sum[m] = _mm256_add_epi32(sum[m], _mm256_add_epi32(low, high));
    }
  }
};

}  // namespace
