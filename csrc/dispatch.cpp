#include "dispatch.h"

#include <stdexcept>

namespace hasten {
namespace {

struct Candidate {
  const char* name;
  bool available;
  const Kernels* (*table)();
};

std::vector<Candidate> candidates() {
  std::vector<Candidate> all;
#if defined(HASTEN_X86)
  // GCC's probe includes XGETBV: a feature the kernel does not save counts as absent.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
#if defined(HASTEN_SIMDE)
  const bool avx512 = avx2;
#else
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#endif
  all.push_back({"avx512", avx512, avx512_kernels});
  all.push_back({"avx2", avx2, avx2_kernels});
#elif defined(HASTEN_NEON)
  all.push_back({"neon", true, neon_kernels});
#endif
  all.push_back({"scalar", true, scalar_kernels});
  return all;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.emplace_back(c.name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) {
    if (c.available) names.emplace_back(c.name);
  }
  return names;
}

const Kernels* kernels_for(const std::string& isa) {
  for (const Candidate& c : candidates()) {
    if (isa == c.name && c.available) return c.table();
  }
  throw std::invalid_argument("instruction set '" + isa + "' is not available on this machine");
}

}  // namespace hasten
