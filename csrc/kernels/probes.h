// How fast this instruction set multiplies and adds with everything in registers or L1.
#pragma once

#include "kernels.h"

namespace {

// Multiply-adds done by `rounds` integer dot products, as the int8 and int4 kernels do them.
double int8_probe(long rounds) {
  using S = Simd;
  constexpr int M = S::tile;
  alignas(64) std::uint8_t w[1024];
  alignas(64) std::int8_t x[M][32];
  for (int i = 0; i < 1024; ++i) w[i] = static_cast<std::uint8_t>(i * 37);
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < 32; ++i) x[m][i] = static_cast<std::int8_t>(i * 11 + m);
  }
  S::I sum[M];
  for (int m = 0; m < M; ++m) sum[m] = S::zero_int();
  for (long r = 0; r < rounds; ++r) {
    asm volatile("" ::: "memory");  // or the compiler computes one round and multiplies
    S::I low[M], high[M];
    S::template dot_int4<M, 1>(w, x[0], 32, low, high);
    for (int m = 0; m < M; ++m) sum[m] = S::add_int(sum[m], S::add_int(low[m], high[m]));
  }
  std::int32_t total = 0;
  for (int m = 0; m < M; ++m) total += S::reduce_add_int(sum[m]);
  volatile std::int32_t keep = total;
  (void)keep;
  return static_cast<double>(rounds) * M * 32 * 2 * S::width;
}

double fp32_probe(long rounds) {
  using S = Simd;
  constexpr int kChains = 10;
  S::F sum[kChains];
  for (int i = 0; i < kChains; ++i) sum[i] = S::set1(static_cast<float>(i));
  const S::F a = S::set1(0.999f), b = S::set1(0.001f);
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = S::fma(sum[i], a, b);
  }
  float total = 0;
  for (int i = 0; i < kChains; ++i) total += S::reduce_add(sum[i]);
  volatile float keep = total;
  (void)keep;
  return static_cast<double>(rounds) * kChains * S::width;
}

}  // namespace
