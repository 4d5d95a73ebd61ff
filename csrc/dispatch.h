// Which instruction sets this build has and this machine can run.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace hasten {

// Names of the compiled-in sets, best first.
std::vector<std::string> compiled_isas();
// Those that the processor and the operating system support, best first.
std::vector<std::string> available_isas();
// Throws std::invalid_argument for a name that is unknown or not available here.
const Kernels* kernels_for(const std::string& isa);

}  // namespace hasten
