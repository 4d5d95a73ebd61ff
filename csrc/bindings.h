// What the files of the Python binding share. They check shapes and ranges, release the GIL, and
// nothing else.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

#include "checks.h"

namespace hasten {

namespace nb = nanobind;
using namespace nb::literals;

// Bound with noconvert: a converted copy would lose precision, or the results written to it.
template <class T, std::size_t Dimensions>
using Array = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Rows = Array<std::int32_t, 1>;

inline int checked_threads(int threads) {
  if (threads < 1 || threads > 1024) reject("threads must be between 1 and 1024");
  return threads;
}

void bind_weights(nb::module_& m);  // matrices, adapters, the file of packed weights
void bind_program(nb::module_& m);  // the KV cache, and programs over it

}  // namespace hasten
