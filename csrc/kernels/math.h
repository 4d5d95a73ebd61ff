// Elementary functions over vectors.
#pragma once

#include <cstddef>

namespace {

// Splits e^x, -87 <= x <= 88, into 2^n * (1 + p) to about 1 ulp (Cephes expf): x = n ln 2 + r, and
// p is a polynomial in r. Returns p.
inline Simd::F exp_parts(Simd::F x, Simd::F& n) {
  using S = Simd;
  n = S::round(S::mul(x, S::set1(1.44269504088896341f)));
  S::F r = S::fma(n, S::set1(-0.693359375f), x);
  r = S::fma(n, S::set1(2.12194440e-4f), r);
  S::F p = S::set1(1.9875691500e-4f);
  p = S::fma(p, r, S::set1(1.3981999507e-3f));
  p = S::fma(p, r, S::set1(8.3334519073e-3f));
  p = S::fma(p, r, S::set1(4.1665795894e-2f));
  p = S::fma(p, r, S::set1(1.6666665459e-1f));
  p = S::fma(p, r, S::set1(5.0000001201e-1f));
  return S::fma(S::mul(r, r), p, r);
}

// e^x; below -87 it returns e^-87, above 88 e^88.
inline Simd::F exp(Simd::F x) {
  using S = Simd;
  S::F n;
  const S::F p = exp_parts(S::min(S::max(x, S::set1(-87.0f)), S::set1(88.0f)), n);
  return S::mul(S::add(p, S::set1(1.0f)), S::exp2i(n));
}

// x / (1 + e^-x)
inline Simd::F silu(Simd::F x) {
  using S = Simd;
  return S::div(x, S::add(S::set1(1.0f), exp(S::sub(S::zero(), x))));
}

// c[0] + c[1] x + c[2] x^2 + ...
template <std::size_t N>
inline Simd::F polynomial(const float (&c)[N], Simd::F x) {
  Simd::F p = Simd::set1(c[N - 1]);
  for (std::size_t i = N - 1; i-- > 0;) p = Simd::fma(p, x, Simd::set1(c[i]));
  return p;
}

// The error function to 4e-7, absolutely and relative to its value: x P(x^2) / Q(x^2) with P and Q
// fitted to the least relative error (2.8e-8 before rounding) on |x| <= 3.92, where it rounds to 1.
inline Simd::F erf(Simd::F x) {
  using S = Simd;
  constexpr float p[] = {1.128379107e+00f, 1.897210181e-01f, 5.149884149e-02f, 3.581218189e-03f,
                         2.303833753e-04f};
  constexpr float q[] = {1.0f,
                         5.014683008e-01f,
                         1.128005311e-01f,
                         1.442679763e-02f,
                         1.053834916e-03f,
                         2.315957863e-05f,
                         -1.122095057e-07f};
  x = S::min(S::max(x, S::set1(-3.92f)), S::set1(3.92f));
  const S::F z = S::mul(x, x);
  return S::div(S::mul(x, polynomial(p, z)), polynomial(q, z));
}

// x / 2 (1 + erf(x / sqrt(2))) (Hendrycks and Gimpel 2016)
inline Simd::F gelu(Simd::F x) {
  using S = Simd;
  const S::F half = S::mul(x, S::set1(0.5f));
  return S::fma(half, erf(S::mul(x, S::set1(0.70710678118654752f))), half);
}

// x / 2 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), which is x / (1 + e^-2u)
inline Simd::F gelu_tanh(Simd::F x) {
  using S = Simd;
  const S::F cube = S::mul(S::mul(x, x), S::mul(x, S::set1(0.044715f)));
  const S::F u = S::mul(S::add(x, cube), S::set1(-1.59576912160573071f));
  return S::div(x, S::add(S::set1(1.0f), exp(u)));
}

// tanh(x) = m / (m + 2) with m = e^2x - 1 = 2^n p + (2^n - 1), which keeps its precision near 0.
// Past 10 the result is 1 to the last bit.
inline Simd::F tanh(Simd::F x) {
  using S = Simd;
  x = S::min(S::max(x, S::set1(-10.0f)), S::set1(10.0f));
  S::F n;
  const S::F p = exp_parts(S::add(x, x), n);
  const S::F power = S::exp2i(n);
  const S::F m = S::fma(power, p, S::sub(power, S::set1(1.0f)));
  return S::div(m, S::add(m, S::set1(2.0f)));
}

// cap * tanh(x / cap)
inline Simd::F softcap(Simd::F x, float cap) {
  using S = Simd;
  return S::mul(tanh(S::div(x, S::set1(cap))), S::set1(cap));
}

}  // namespace
