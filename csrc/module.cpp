// The native module: its small parts, and the list of all.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <utility>

#include "bindings.h"
#include "dispatch.h"
#include "probes.h"

namespace hasten {
namespace {

template <class T>
using Row = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// One row at a time, for the sampler.
class Softmax {
 public:
  explicit Softmax(const std::string& isa) : kernels_(kernels_for(isa)) {}

  void operator()(Array<float, 1> x, float peak, float scale, Row<float> y,
                  Row<double> sums) const {
    const std::size_t n = x.shape(0);
    if (n < 1 || n > kMaxSize) reject("a row has between 1 and 2^24 values");
    if (y.shape(0) != n) reject("as many weights as values are needed");
    if (sums.shape(0) != (n + kSumBlock - 1) / kSumBlock) {
      reject("a sum for every 512 values is needed");
    }
    if (!(scale > 0)) reject("the scale must be above 0");
    kernels_->softmax_weights(x.data(), peak, scale, static_cast<int>(n), y.data(), sums.data());
  }

 private:
  const Kernels* kernels_;
};

void bind_softmax(nb::module_& m) {
  nb::class_<Softmax>(m, "Softmax", "Weights of the values of a row.")
      .def(nb::init<const std::string&>(), "isa"_a)
      .def("__call__", &Softmax::operator(), "x"_a.noconvert(), "peak"_a, "scale"_a,
           "weights"_a.noconvert(), "sums"_a.noconvert(),
           "Writes exp((x - peak) * scale), and the sum of every 512 of them.");
}

// Strings of a file, each after its length. A vocabulary has 50,000, and a start must be quick.
std::pair<nb::typed<nb::list, nb::str>, std::size_t> read_strings(Row<const std::uint8_t> content,
                                                                  std::size_t begin,
                                                                  std::size_t count) {
  const std::size_t size = content.shape(0);
  nb::typed<nb::list, nb::str> found;
  std::size_t at = begin;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint64_t length;
    if (at > size || size - at < sizeof(length)) break;
    std::memcpy(&length, content.data() + at, sizeof(length));
    if (length > size - at - sizeof(length)) break;
    const char* text = reinterpret_cast<const char*>(content.data()) + at + sizeof(length);
    PyObject* decoded = PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(length), nullptr);
    if (decoded == nullptr) throw nb::python_error();
    found.append(nb::steal<nb::str>(decoded));
    at += sizeof(length) + length;
  }
  return {found, at};
}

void bind_files(nb::module_& m) {
  m.def("read_strings", &read_strings, "content"_a.noconvert(), "begin"_a, "count"_a,
        "UTF-8 strings after 64-bit lengths (little endian), and where they end; fewer than count "
        "if the content ends before.");
}

void bind_probes(nb::module_& m) {
  m.def("compiled_isas", &compiled_isas, "Instruction sets of this build, best first.");
  m.def("isas", &available_isas, "Instruction sets this machine can run, best first.");
  m.def(
      "stream_bandwidth",
      [](int threads, int megabytes) {
        if (megabytes < 1 || megabytes > 16384) reject("megabytes must be between 1 and 16384");
        nb::gil_scoped_release release;
        return stream_bandwidth(checked_threads(threads), megabytes);
      },
      "threads"_a, "megabytes"_a = 256, "Bytes a second read from memory.");
  m.def(
      "int8_rate",
      [](int threads, const std::string& isa) {
        nb::gil_scoped_release release;
        return int8_rate(checked_threads(threads), isa);
      },
      "threads"_a, "isa"_a, "Integer operations a second, 2 a multiply-add.");
  m.def(
      "fp32_rate",
      [](int threads, const std::string& isa) {
        nb::gil_scoped_release release;
        return fp32_rate(checked_threads(threads), isa);
      },
      "threads"_a, "isa"_a, "Float operations a second, 2 a multiply-add.");
}

}  // namespace
}  // namespace hasten

NB_MODULE(_native, m) {
  m.doc() = "The native executor: packed weights, the KV cache, and programs over them.";
  hasten::bind_weights(m);
  hasten::bind_program(m);
  hasten::bind_softmax(m);
  hasten::bind_files(m);
  hasten::bind_probes(m);
}
