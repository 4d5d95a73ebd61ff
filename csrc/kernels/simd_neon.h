// Primitives for NEON with the dot product extension (Armv8.2-A): 4 float lanes.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

struct Simd {
  static constexpr const char* name = "neon";
  static constexpr int width = 4;
  static constexpr int tile = 8;  // int4: 16 sums, 8 activations and the codes fit 32 registers
  static constexpr int float_tile = 2;  // 16 sums and 8 columns
  using F = float32x4_t;
  using I = int32x4_t;

  static F zero() { return vdupq_n_f32(0.0f); }
  static F set1(float v) { return vdupq_n_f32(v); }
  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F min(F a, F b) { return vminq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F abs(F a) { return vabsq_f32(a); }
  static F round(F a) { return vrndnq_f32(a); }
  // 2^n for integral n in [-126, 127].
  static F exp2i(F n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static float reduce_add(F v) {
    const float32x2_t pair = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
  }
  static float reduce_max(F v) { return vmaxvq_f32(v); }

  static F load(const std::uint16_t* bf16) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(bf16), 16));
  }
  static F load_half(const std::uint16_t* f16) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(f16)));
  }
  static F load(const std::int8_t* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
  }
  // Rounds to the nearest integer and keeps the low byte; |v| <= 127. Returns the integers.
  static I store_int8(std::int8_t* p, F v) {
    const I i = vcvtnq_s32_f32(v);
    const int16x4_t words = vmovn_s32(i);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(p, &four, 4);
    return i;
  }

  static I zero_int() { return vdupq_n_s32(0); }
  static I set1_int(std::int32_t v) { return vdupq_n_s32(v); }
  static I add_int(I a, I b) { return vaddq_s32(a, b); }
  static I sub_int(I a, I b) { return vsubq_s32(a, b); }
  static F to_float(I v) { return vcvtq_f32_s32(v); }
  static std::int32_t reduce_add_int(I v) { return vaddvq_s32(v); }

  // Int4 codes of `Blocks` times 32 columns against M tokens, whose codes lie `stride` apart. `w`
  // points at the 16 bytes of the first 4 columns, 4 further columns follow every 64 bytes. Yields
  // the sums of the rows of the low and of the high nibbles.
  template <int M, int Blocks>
  static void dot_int4(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&low)[M], I (&high)[M]) {
    for (int m = 0; m < M; ++m) low[m] = high[m] = zero_int();
#pragma GCC unroll 4
    for (int half = 0; half < 2 * Blocks; ++half, w += 256) {
      int8x16_t x[M];
      for (int m = 0; m < M; ++m) x[m] = vld1q_s8(a + m * stride + 16 * half);
      dot_int4_columns<0>(w, x, low, high);
      dot_int4_columns<1>(w + 64, x, low, high);
      dot_int4_columns<2>(w + 128, x, low, high);
      dot_int4_columns<3>(w + 192, x, low, high);
    }
  }

  // The same for int8 codes + 128, 4 further columns every 128 bytes. The dot product is signed
  // here, so it takes the code without the 128.
  static constexpr int int8_zero = 0;
  template <int M, int Blocks>
  static void dot_int8(const std::uint8_t* w, const std::int8_t* a, std::ptrdiff_t stride,
                       I (&sum)[M]) {
    for (int m = 0; m < M; ++m) sum[m] = zero_int();
#pragma GCC unroll 4
    for (int half = 0; half < 2 * Blocks; ++half, w += 512) {
      int8x16_t x[M];
      for (int m = 0; m < M; ++m) x[m] = vld1q_s8(a + m * stride + 16 * half);
      dot_int8_columns<0>(w, x, sum);
      dot_int8_columns<1>(w + 128, x, sum);
      dot_int8_columns<2>(w + 256, x, sum);
      dot_int8_columns<3>(w + 384, x, sum);
    }
  }

 private:
  // 4 columns against the 4 codes of `Quarter` of each token's 16. Nibbles are not negative, so the
  // signed dot product takes them as they are.
  template <int Quarter, int M>
  static void dot_int4_columns(const std::uint8_t* w, const int8x16_t (&x)[M], I (&low)[M],
                               I (&high)[M]) {
    const uint8x16_t both = vld1q_u8(w);
    const int8x16_t lo = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    const int8x16_t hi = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      low[m] = vdotq_laneq_s32(low[m], lo, x[m], Quarter);
      high[m] = vdotq_laneq_s32(high[m], hi, x[m], Quarter);
    }
  }

  template <int Quarter, int M>
  static void dot_int8_columns(const std::uint8_t* w, const int8x16_t (&x)[M], I (&sum)[M]) {
    const int8x16_t codes = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w), vdupq_n_u8(0x80)));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m] = vdotq_laneq_s32(sum[m], codes, x[m], Quarter);
  }
};

}  // namespace
