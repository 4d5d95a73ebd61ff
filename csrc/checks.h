// Refusals, which Python sees as ValueError, and sizes in range.
#pragma once

#include <stdexcept>
#include <string>

namespace hasten {

inline constexpr int kMaxSize = 1 << 24;  // tokens, positions, widths: products of two fit 64 bits

[[noreturn]] inline void reject(const std::string& what) { throw std::invalid_argument(what); }

inline void require(bool fine, const char* what) {
  if (!fine) reject(what);
}

inline int round_up(int value, int step) { return (value + step - 1) / step * step; }

}  // namespace hasten
