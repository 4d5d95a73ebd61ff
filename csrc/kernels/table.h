// The table of this instruction set; included last by isa_<isa>.cpp.
#pragma once

#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "probes.h"
#include "rows.h"

namespace {

constexpr hasten::Kernels kTable = {Simd::name, linear,    rms_norm,   quantize,  silu_mul,
                                    add,        attention, int8_probe, fp32_probe};

}  // namespace
