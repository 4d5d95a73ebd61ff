// What the machine could do at best: the floors that measurements are held against.
#pragma once

#include <string>

namespace hasten {

// Bytes a second that `threads` threads read from memory together.
double stream_bandwidth(int threads, int megabytes);
// Operations a second (2 a multiply-add) with all operands in registers or L1.
double int8_rate(int threads, const std::string& isa);
double fp32_rate(int threads, const std::string& isa);

}  // namespace hasten
