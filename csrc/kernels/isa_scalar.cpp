#include "simd_scalar.h"
// The primitives come first: the templates are instantiated over them.
#include "table.h"

namespace hasten {

const Kernels* scalar_kernels() { return &kTable; }

}  // namespace hasten
