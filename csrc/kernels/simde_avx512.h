// AVX-512 intrinsics over SIMDe's emulation, and the few that SIMDe 0.7.4 lacks, from two AVX2
// halves.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cstdint>
#include <cstring>

namespace {

// function(half) for both halves of a result; `Half` is an AVX2 vector.
template <class Whole, class Function>
Whole simde_halves(Function function) {
  const auto low = function(0), high = function(1);
  Whole whole;
  std::memcpy(&whole, &low, 32);
  std::memcpy(reinterpret_cast<char*>(&whole) + 32, &high, 32);
  return whole;
}

template <class Half, class Whole>
Half simde_half(const Whole& whole, int index) {
  Half half;
  std::memcpy(&half, reinterpret_cast<const char*>(&whole) + index * sizeof half, sizeof half);
  return half;
}

inline simde__m512 simde_cvtepi32_ps(simde__m512i v) {
  return simde_halves<simde__m512>(
      [&](int i) { return _mm256_cvtepi32_ps(simde_half<__m256i>(v, i)); });
}

inline simde__m512i simde_cvtps_epi32(simde__m512 v) {
  return simde_halves<simde__m512i>(
      [&](int i) { return _mm256_cvtps_epi32(simde_half<__m256>(v, i)); });
}

inline simde__m512i simde_cvtepi8_epi32(__m128i v) {
  return simde_halves<simde__m512i>(
      [&](int i) { return _mm256_cvtepi8_epi32(_mm_set1_epi64x(simde_half<std::int64_t>(v, i))); });
}

inline simde__m512i simde_cvtepu16_epi32(__m256i v) {
  return simde_halves<simde__m512i>(
      [&](int i) { return _mm256_cvtepu16_epi32(simde_half<__m128i>(v, i)); });
}

inline simde__m512 simde_cvtph_ps(__m256i v) {
  return simde_halves<simde__m512>(
      [&](int i) { return _mm256_cvtph_ps(simde_half<__m128i>(v, i)); });
}

}  // namespace

#define _mm512_cvtepi32_ps simde_cvtepi32_ps
#define _mm512_cvtps_epi32 simde_cvtps_epi32
#define _mm512_cvtepi8_epi32 simde_cvtepi8_epi32
#define _mm512_cvtepu16_epi32 simde_cvtepu16_epi32
#define _mm512_cvtph_ps simde_cvtph_ps
