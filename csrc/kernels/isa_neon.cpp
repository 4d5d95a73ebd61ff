#include "simd_neon.h"
// The primitives come first: the templates are instantiated over them.
#include "table.h"

namespace hasten {

const Kernels* neon_kernels() { return &kTable; }

}  // namespace hasten
