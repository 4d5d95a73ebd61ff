#include "simd_avx512.h"
// The primitives come first: the templates are instantiated over them.
#include "table.h"

namespace hasten {

const Kernels* avx512_kernels() { return &kTable; }

}  // namespace hasten
