// Primitives for AVX2 with FMA and F16C: 8 float lanes.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <utility>

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
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
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
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
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

  // 4 bytes at p + Offset to every lane. Volatile assembly with a constant offset, or GCC hoists
  // the broadcasts (or their addresses) of a whole group out of the loop over rows and spills them.
  template <int Offset>
  static I broadcast4(const std::int8_t* p) {
    I v;
    asm volatile("vpbroadcastd %c2(%1), %0"
                 : "=x"(v)
                 : "r"(p), "i"(Offset), "m"(*reinterpret_cast<const Codes*>(p)));
    return v;
  }
  // sum16 += products of 4 unsigned by 4 signed bytes in pairs. The addition is assembly, because
  // GCC would rather add up all products of a sum in a tree, which spills every one of them.
  static void dot4(I& sum16, I w, I a) {
    const I products = _mm256_maddubs_epi16(w, a);
    asm("vpaddw %1, %0, %0" : "+x"(sum16) : "x"(products));
  }

  // Int4 codes of `Blocks` times 32 columns against M tokens, whose codes lie `stride` apart. `w`
  // points at the 32 bytes of the first 4 columns, 4 further columns follow every 64 bytes. Yields
  // the sums of the rows of the low and of the high nibbles. Sums of 8 products of pairs stay below
  // 15 * 127 * 16 = 30480, so 16 bits hold them.
  template <int M, int Blocks>
  static void dot_int4(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&low)[M], I (&high)[M]) {
    const I mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (int b = 0; b < Blocks; ++b) {
      I low16[M], high16[M];
      nibble_sums<M>(w + 512 * b, a + 32 * b, stride, mask, low16, high16);
      for (int m = 0; m < M; ++m) {
        const I lo = _mm256_madd_epi16(low16[m], ones), hi = _mm256_madd_epi16(high16[m], ones);
        low[m] = b == 0 ? lo : _mm256_add_epi32(low[m], lo);
        high[m] = b == 0 ? hi : _mm256_add_epi32(high[m], hi);
      }
    }
  }

  // The same for int8 codes + 128, 4 further columns every 128 bytes. The instruction multiplies
  // unsigned by signed bytes, so the sign of a code goes over to the activation: two products stay
  // below 128 * 127 * 2 = 32512 in 16 bits.
  static constexpr int int8_zero = 0;
  template <int M, int Blocks>
  static void dot_int8(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&sum)[M]) {
    for (int m = 0; m < M; ++m) sum[m] = zero_int();
    for (int b = 0; b < Blocks; ++b) {
      const std::int8_t* rows[M];
      for (int m = 0; m < M; ++m) rows[m] = a + 32 * b + m * stride;
      [&]<int... K>(std::integer_sequence<int, K...>) {
        (add_signed_columns<M, K>(w + 1024 * b + 128 * K, rows, sum), ...);
      }(std::make_integer_sequence<int, 8>());
    }
  }

 private:
  struct Codes {
    std::int8_t bytes[32];
  };

  template <int M>
  static void nibble_sums(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                          I mask, I (&low)[M], I (&high)[M]) {
    const std::int8_t* rows[M];
    for (int m = 0; m < M; ++m) rows[m] = a + m * stride;
    [&]<int... K>(std::integer_sequence<int, K...>) {
      (add_columns<M, K>(w + 64 * K, rows, mask, low, high), ...);
    }(std::make_integer_sequence<int, 8>());
  }

  // Columns 4 K .. 4 K + 3; the first of them set the sums.
  template <int M, int K>
  static void add_columns(const std::uint8_t* w, const std::int8_t* const (&a)[M], I mask,
                          I (&low)[M], I (&high)[M]) {
    const I both = _mm256_loadu_si256(reinterpret_cast<const I*>(w));
    const I lo = _mm256_and_si256(both, mask);
    const I hi = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    for (int m = 0; m < M; ++m) {
      const I x = broadcast4<4 * K>(a[m]);
      if constexpr (K == 0) {
        low[m] = _mm256_maddubs_epi16(lo, x);
        high[m] = _mm256_maddubs_epi16(hi, x);
      } else {
        dot4(low[m], lo, x);
        dot4(high[m], hi, x);
      }
    }
  }

  template <int M, int K>
  static void add_signed_columns(const std::uint8_t* w, const std::int8_t* const (&a)[M],
                                 I (&sum)[M]) {
    const I biased = _mm256_loadu_si256(reinterpret_cast<const I*>(w));
    const I codes = _mm256_xor_si256(biased, _mm256_set1_epi8(-128));
    const I sizes = _mm256_abs_epi8(codes), ones = _mm256_set1_epi16(1);
    for (int m = 0; m < M; ++m) {
      const I x = _mm256_sign_epi8(broadcast4<4 * K>(a[m]), codes);
      const I products = _mm256_madd_epi16(_mm256_maddubs_epi16(sizes, x), ones);
      asm("vpaddd %1, %0, %0" : "+x"(sum[m]) : "x"(products));
    }
  }
};

}  // namespace
