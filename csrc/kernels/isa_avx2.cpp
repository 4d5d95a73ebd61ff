#include "simd_avx2.h"
// The primitives come first: the templates are instantiated over them.
#include "table.h"

namespace hasten {

const Kernels* avx2_kernels() { return &kTable; }

}  // namespace hasten
