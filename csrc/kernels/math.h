// Elementary functions over vectors.
#pragma once

namespace {

// e^x to about 1 ulp (Cephes expf): x = n ln 2 + r, a polynomial in r, times 2^n. Below -87 it
// returns e^-87, above 88 e^88.
inline Simd::F exp(Simd::F x) {
  using S = Simd;
  x = S::min(S::max(x, S::set1(-87.0f)), S::set1(88.0f));
  const S::F n = S::round(S::mul(x, S::set1(1.44269504088896341f)));
  S::F r = S::fma(n, S::set1(-0.693359375f), x);
  r = S::fma(n, S::set1(2.12194440e-4f), r);
  S::F p = S::set1(1.9875691500e-4f);
  p = S::fma(p, r, S::set1(1.3981999507e-3f));
  p = S::fma(p, r, S::set1(8.3334519073e-3f));
  p = S::fma(p, r, S::set1(4.1665795894e-2f));
  p = S::fma(p, r, S::set1(1.6666665459e-1f));
  p = S::fma(p, r, S::set1(5.0000001201e-1f));
  const S::F y = S::add(S::fma(S::mul(r, r), p, r), S::set1(1.0f));
  return S::mul(y, S::exp2i(n));
}

// x / (1 + e^-x)
inline Simd::F silu(Simd::F x) {
  using S = Simd;
  return S::div(x, S::add(S::set1(1.0f), exp(S::sub(S::zero(), x))));
}

}  // namespace
