// The Python binding: checks shapes and ranges, releases the GIL, and nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>

#include "dispatch.h"
#include "kv_cache.h"
#include "lora.h"
#include "matrix.h"
#include "packed_file.h"
#include "probes.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace hasten;

namespace {

// Bound with noconvert: a converted copy would lose precision, or the results written to it.
template <class T, std::size_t Dimensions>
using Array = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Rows = Array<std::int32_t, 1>;
template <class T>
using Row = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int kMaxSize = 1 << 24;  // so that no product of sizes overflows

[[noreturn]] void reject(const std::string& what) { throw std::invalid_argument(what); }

int checked_threads(int threads) {
  if (threads < 1 || threads > 1024) reject("threads must be between 1 and 1024");
  return threads;
}

Format parse_format(const std::string& name) {
  if (name == "f32") return Format::f32;
  if (name == "bf16") return Format::bf16;
  if (name == "int8") return Format::int8;
  if (name == "int4") return Format::int4;
  reject("unknown weight format '" + name + "'");
}

KvFormat parse_kv_format(const std::string& name) {
  if (name == "f32") return KvFormat::f32;
  if (name == "bf16") return KvFormat::bf16;
  if (name == "int8") return KvFormat::int8;
  reject("unknown KV format '" + name + "'");
}

Epilogue parse_epilogue(const std::string& name) {
  if (name == "store") return Epilogue::store;
  if (name == "add") return Epilogue::add;
  if (name == "silu_mul") return Epilogue::silu_mul;
  if (name == "gelu") return Epilogue::gelu;
  if (name == "gelu_tanh") return Epilogue::gelu_tanh;
  if (name == "gelu_mul") return Epilogue::gelu_mul;
  reject("unknown epilogue '" + name + "'");
}

std::shared_ptr<Matrix> make_matrix(const std::string& format, int rows, int columns, int group,
                                    bool minimum, std::shared_ptr<Arena> arena) {
  const Format kind = parse_format(format);
  const bool integer = kind == Format::int8 || kind == Format::int4;
  if (rows < 1 || columns < 1 || rows > kMaxSize || columns > kMaxSize) {
    reject("a matrix needs between 1 and 2^24 rows and columns");
  }
  const int padded = (columns + kBlock - 1) / kBlock * kBlock;
  if (integer && (group < kBlock || group % kBlock != 0 || padded % group != 0)) {
    reject("the group must be a multiple of 32 that divides the padded columns");
  }
  if (!integer && group != 0) reject("float matrices have no groups");
  if (minimum && !integer) reject("float matrices have no minimums");
  if (arena == nullptr) arena = std::make_shared<Arena>();
  return std::make_shared<Matrix>(std::move(arena), kind, rows, columns, group, minimum);
}

std::span<const std::int32_t> targets(const Matrix& matrix, const Rows& rows, std::size_t count) {
  if (rows.shape(0) != count) reject("as many target rows as source rows are needed");
  for (std::size_t i = 0; i < count; ++i) {
    if (rows.data()[i] < 0 || rows.data()[i] >= matrix.view().rows) {
      reject("target row out of range");
    }
  }
  return {rows.data(), count};
}

void require_shape(std::size_t rows, std::size_t columns, std::size_t expected_rows, int expected) {
  if (rows != expected_rows || columns != static_cast<std::size_t>(expected)) {
    reject("array shape does not fit the matrix");
  }
}

void require_format(const Matrix& matrix, Format format) {
  if (matrix.view().format != format) reject("the matrix has another format");
}

// The minimums, or null where the matrix has none, after a check of both shapes.
const std::uint16_t* group_values(const Matrix& matrix, const Array<std::uint16_t, 2>& scales,
                                  const std::optional<Array<std::uint16_t, 2>>& minimums) {
  const MatrixView& view = matrix.view();
  const int groups = view.padded / view.group;
  if (minimums.has_value() != view.minimum) reject("minimums do not fit the matrix");
  require_shape(scales.shape(0), scales.shape(1), scales.shape(0), groups);
  if (!minimums) return nullptr;
  require_shape(minimums->shape(0), minimums->shape(1), scales.shape(0), groups);
  return minimums->data();
}

void bind_matrix(nb::module_& m) {
  nb::class_<Arena>(m, "Arena", "Memory that the matrices of a model share.").def(nb::new_([] {
    return std::make_shared<Arena>();
  }));
  nb::class_<Matrix>(m, "Matrix", "A weight matrix in the panels of the native kernels.")
      .def(nb::new_(&make_matrix), "format"_a, "rows"_a, "columns"_a, "group"_a = 0,
           "minimum"_a = false, "arena"_a.none() = nb::none())
      .def(
          "place_float",
          [](Matrix& self, Array<float, 2> values, Rows rows) {
            if (self.view().group != 0) reject("the matrix has another format");
            require_shape(values.shape(0), values.shape(1), values.shape(0), self.view().columns);
            const auto target = targets(self, rows, values.shape(0));
            nb::gil_scoped_release release;
            self.place_float(values.data(), target);
          },
          "values"_a.noconvert(), "rows"_a.noconvert(),
          "Puts float32 row i at row rows[i] (f32 and bf16 matrices).")
      .def(
          "place_bf16",
          [](Matrix& self, Array<std::uint16_t, 2> values, Rows rows) {
            require_format(self, Format::bf16);
            require_shape(values.shape(0), values.shape(1), values.shape(0), self.view().columns);
            const auto target = targets(self, rows, values.shape(0));
            nb::gil_scoped_release release;
            self.place_bf16(values.data(), target);
          },
          "values"_a.noconvert(), "rows"_a.noconvert(), "Puts rows of bfloat16 bit patterns.")
      .def(
          "place_int8",
          [](Matrix& self, Array<std::int8_t, 2> codes, Array<std::uint16_t, 2> scales,
             std::optional<Array<std::uint16_t, 2>> minimums, Rows rows) {
            require_format(self, Format::int8);
            require_shape(codes.shape(0), codes.shape(1), scales.shape(0), self.view().padded);
            const std::uint16_t* low = group_values(self, scales, minimums);
            const auto target = targets(self, rows, codes.shape(0));
            nb::gil_scoped_release release;
            self.place_int8(codes.data(), scales.data(), low, target);
          },
          "codes"_a.noconvert(), "scales"_a.noconvert(), "minimums"_a.noconvert().none(),
          "rows"_a.noconvert(), "Scales and minimums are half-precision bit patterns.")
      .def(
          "place_int4",
          [](Matrix& self, Array<std::uint8_t, 2> codes, Array<std::uint16_t, 2> scales,
             std::optional<Array<std::uint16_t, 2>> minimums, Rows rows) {
            require_format(self, Format::int4);
            require_shape(codes.shape(0), codes.shape(1), scales.shape(0), self.view().padded / 2);
            const std::uint16_t* low = group_values(self, scales, minimums);
            const auto target = targets(self, rows, codes.shape(0));
            nb::gil_scoped_release release;
            self.place_int4(codes.data(), scales.data(), low, target);
          },
          "codes"_a.noconvert(), "scales"_a.noconvert(), "minimums"_a.noconvert().none(),
          "rows"_a.noconvert(),
          "Each row may be placed once; codes as in hasten.kernels.quantization.")
      .def_prop_ro("nbytes", &Matrix::bytes)
      .def_prop_ro(
          "data",
          [](const std::shared_ptr<Matrix>& self) {
            return nb::ndarray<const std::uint8_t, nb::numpy, nb::ndim<1>>(
                self->data(), {self->bytes()}, nb::find(self));
          },
          "The packed bytes, uint8 [nbytes], read-only: the same for every instruction set.")
      .def(
          "clear",
          [](Matrix& self) {
            nb::gil_scoped_release release;
            self.clear();
          },
          "Back to zeros, so that rows may be placed again.")
      .def_prop_ro(
          "activation_group",
          [](const Matrix& self) { return self.view().group == 0 ? 0 : self.activation_group(); },
          "Columns of activations that share a scale, 0 for float matrices.");
}

std::shared_ptr<LoraPair> make_lora(const std::string& format, Array<float, 2> a, Array<float, 2> b,
                                    Array<float, 1> scales, Array<std::int32_t, 2> spans) {
  const Format kind = parse_format(format);
  if (kind != Format::f32 && kind != Format::bf16) reject("adapters are f32 or bf16");
  const std::size_t rank = a.shape(0), columns = a.shape(1), rows = b.shape(0);
  for (const std::size_t size : {rank, columns, rows}) {
    if (size < 1 || size > kMaxSize) reject("an adapter needs between 1 and 2^24 rows and columns");
  }
  if (b.shape(1) != rank || scales.shape(0) != rank) reject("the arrays differ in rank");
  if (spans.shape(0) != (rows + kLoraRows - 1) / kLoraRows || spans.shape(1) != 2) {
    reject("every 16 rows need a span of columns");
  }
  for (std::size_t i = 0; i < spans.shape(0); ++i) {
    const std::int32_t begin = spans.data()[2 * i], end = spans.data()[2 * i + 1];
    if (begin < 0 || begin > end || end > static_cast<int>(rank)) reject("span out of range");
  }
  nb::gil_scoped_release release;
  return std::make_shared<LoraPair>(kind, static_cast<int>(rank), static_cast<int>(columns),
                                    static_cast<int>(rows), a.data(), b.data(), scales.data(),
                                    spans.data());
}

void bind_lora(nb::module_& m) {
  nb::class_<LoraPair>(m, "LoraPair", "A and B of one LoRA adapter for one product, packed.")
      .def(nb::new_(&make_lora), "format"_a, "a"_a.noconvert(), "b"_a.noconvert(),
           "scales"_a.noconvert(), "spans"_a.noconvert(),
           "a [rank, columns], b [rows, rank] in the product's panel order, scales [rank], and for "
           "each 16 rows of b the columns [begin, end) outside of which it is zero.")
      .def_prop_ro("nbytes", &LoraPair::bytes);
}

using MatrixList = std::vector<std::shared_ptr<Matrix>>;

void bind_packed_file(nb::module_& m) {
  m.def(
      "checksums",
      [](const MatrixList& matrices, int threads) {
        nb::gil_scoped_release release;
        return checksums(matrices, checked_threads(threads));
      },
      "matrices"_a, "threads"_a, "XXH64 of every piece of at most 4 MiB, matrix by matrix.");
  m.def(
      "count_pieces", [](const MatrixList& matrices) { return count_pieces(matrices); },
      "matrices"_a, "How many checksums they have.");
  m.def(
      "read_matrices",
      [](int file, std::uint64_t offset, const MatrixList& matrices,
         const std::vector<std::uint64_t>& sums, int threads) {
        nb::gil_scoped_release release;
        return read_matrices(file, offset, matrices, sums, checked_threads(threads));
      },
      "file"_a, "offset"_a, "matrices"_a, "sums"_a, "threads"_a,
      "Fills matrices from an open file; False if it is too short or a checksum differs.");
  m.def(
      "xxh64",
      [](nb::bytes data) {
        return xxh64(reinterpret_cast<const std::uint8_t*>(data.c_str()), data.size());
      },
      "data"_a, "XXH64 with seed 0.");
}

void bind_cache(nb::module_& m) {
  nb::class_<KvCache>(m, "KvCache", "Keys and values in blocks of 32 positions.")
      .def(nb::new_(
               [](const std::string& format, int layers, int blocks, int kv_heads, int head_dim) {
                 if (layers < 1 || layers > 1024 || blocks < 1 || blocks > 1 << 22 ||
                     kv_heads < 1 || kv_heads > 4096 || head_dim < 1 || head_dim > 512) {
                   reject("KV cache sizes out of range");
                 }
                 return std::make_shared<KvCache>(parse_kv_format(format), layers, blocks, kv_heads,
                                                  head_dim);
               }),
           "format"_a, "layers"_a, "blocks"_a, "kv_heads"_a, "head_dim"_a)
      .def_prop_ro("nbytes", &KvCache::bytes);
}

using Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

Step make_step(const Program& program, const Rows& tokens, const Rows& positions,
               const Rows& starts, const Array<std::int32_t, 2>& tables, const Rows& logit_rows,
               const Output& output, const std::optional<Rows>& adapters,
               std::optional<int> threads) {
  if (tokens.shape(0) != positions.shape(0)) reject("batch: tokens and positions differ in length");
  if (starts.shape(0) < 2 || tables.shape(0) + 1 != starts.shape(0)) {
    reject("batch: starts and block tables disagree on the number of sequences");
  }
  if (output.shape(0) != logit_rows.shape(0) ||
      output.shape(1) != static_cast<std::size_t>(program.output_width())) {
    reject("batch: the output array has the wrong shape");
  }
  if (adapters && adapters->shape(0) != tables.shape(0)) {
    reject("batch: every sequence needs an adapter slot, or -1");
  }
  Step step{};
  step.adapters = adapters ? adapters->data() : nullptr;
  step.tokens = tokens.data();
  step.positions = positions.data();
  step.starts = starts.data();
  step.tables = tables.data();
  step.logit_rows = logit_rows.data();
  step.count = static_cast<int>(tokens.shape(0));
  step.sequences = static_cast<int>(starts.shape(0)) - 1;
  step.table_width = static_cast<int>(tables.shape(1));
  step.selected = static_cast<int>(logit_rows.shape(0));
  step.threads = threads.value_or(program.threads());
  return step;
}

void run_program(Program& program, Rows tokens, Rows positions, Rows starts,
                 Array<std::int32_t, 2> tables, Rows logit_rows, Output output,
                 std::optional<Rows> adapters, std::optional<int> threads) {
  Step step =
      make_step(program, tokens, positions, starts, tables, logit_rows, output, adapters, threads);
  nb::gil_scoped_release release;
  program.run(step, output.data());
}

double time_program(Program& program, Rows tokens, Rows positions, Rows starts,
                    Array<std::int32_t, 2> tables, Rows logit_rows, Output output, int begin,
                    int end, std::optional<int> threads) {
  Step step =
      make_step(program, tokens, positions, starts, tables, logit_rows, output, {}, threads);
  nb::gil_scoped_release release;
  return program.time(step, output.data(), begin, end);
}

std::vector<float> values_of(const std::optional<Array<float, 1>>& array) {
  if (!array) return {};
  return {array->data(), array->data() + array->shape(0)};
}

void bind_program(nb::module_& m) {
  nb::class_<Program>(m, "Program", "A lowered graph over numbered buffers.")
      .def(nb::init<int, const std::string&, int, int, int>(), "threads"_a, "isa"_a, "max_tokens"_a,
           "max_selected"_a, "max_context"_a)
      .def("add_buffer", &Program::add_buffer, "width"_a, "selected"_a = false)
      .def("add_quantized_buffer", &Program::add_quantized_buffer, "width"_a, "group"_a,
           "selected"_a = false)
      .def("add_output", &Program::add_output, "width"_a)
      .def(
          "add_rope",
          [](Program& self, Array<float, 2> cosine, Array<float, 2> sine) {
            if (cosine.shape(0) != sine.shape(0) || cosine.shape(1) != sine.shape(1)) {
              reject("cosine and sine tables differ in shape");
            }
            return self.add_rope(cosine.data(), sine.data(), static_cast<int>(cosine.shape(0)),
                                 static_cast<int>(cosine.shape(1)));
          },
          "cosine"_a.noconvert(), "sine"_a.noconvert(), "Returns the number of the tables.")
      .def("set_cache", &Program::set_cache, "cache"_a)
      .def("embed", &Program::embed, "matrix"_a, "out"_a)
      .def(
          "rms_norm",
          [](Program& self, int in, Array<float, 1> weight, float eps, int out) {
            self.rms_norm(in, values_of(weight), eps, out);
          },
          "source"_a, "weight"_a.noconvert(), "eps"_a, "out"_a,
          "A weight narrower than a row is that of each head of it.")
      .def(
          "embed_position",
          [](Program& self, Array<float, 2> table, int offset, int out) {
            if (table.shape(0) > kMaxSize || table.shape(1) > kMaxSize) {
              reject("a position table has at most 2^24 rows and columns");
            }
            self.embed_position(table.data(), static_cast<int>(table.shape(0)),
                                static_cast<int>(table.shape(1)), offset, out);
          },
          "table"_a.noconvert(), "offset"_a, "out"_a)
      .def(
          "add_row",
          [](Program& self, int in, Array<float, 1> added, int out) {
            self.add_row(in, added.data(), static_cast<int>(added.shape(0)), out);
          },
          "source"_a, "added"_a.noconvert(), "out"_a)
      .def(
          "layer_norm",
          [](Program& self, int in, Array<float, 1> weight, Array<float, 1> bias, float eps,
             int out) {
            if (bias.shape(0) != weight.shape(0)) reject("weight and bias differ in length");
            self.layer_norm(in, weight.data(), bias.data(), static_cast<int>(weight.shape(0)), eps,
                            out);
          },
          "source"_a, "weight"_a.noconvert(), "bias"_a.noconvert(), "eps"_a, "out"_a)
      .def(
          "quantize",
          [](Program& self, int in, int out, std::optional<Rows> order) {
            std::vector<std::int32_t> columns;
            if (order) columns.assign(order->data(), order->data() + order->shape(0));
            self.quantize(in, out, std::move(columns));
          },
          "source"_a, "out"_a, "order"_a.noconvert().none() = nb::none(),
          "With an order, column i of the codes is column order[i] of the values.")
      .def(
          "linear",
          [](Program& self, int in, std::shared_ptr<Matrix> matrix, int out,
             std::optional<Array<float, 1>> bias, const std::string& epilogue, float scale,
             int lora) {
            self.linear(in, std::move(matrix), out, values_of(bias), parse_epilogue(epilogue),
                        scale, lora);
          },
          "source"_a, "matrix"_a, "out"_a, "bias"_a.noconvert().none() = nb::none(),
          "epilogue"_a = "store", "scale"_a = 1.0f, "lora"_a = -1,
          "The bias has one value a row, padded to whole panels of 32; lora is the site of the "
          "adapters that change the product.")
      .def("reserve_adapters", &Program::reserve_adapters, "slots"_a)
      .def("lora_shrink", &Program::lora_shrink, "source"_a, "out"_a,
           "A x of the tokens that have an adapter; returns the site to fill and to multiply with.")
      .def("set_adapter", &Program::set_adapter, "site"_a, "slot"_a, "pair"_a.none(),
           nb::call_guard<nb::gil_scoped_release>())
      .def("silu_mul", &Program::silu_mul, "gate"_a, "up"_a, "out"_a)
      .def("gelu", &Program::gelu, "source"_a, "tanh"_a, "out"_a)
      .def("gelu_mul", &Program::gelu_mul, "gate"_a, "up"_a, "out"_a)
      .def("scale", &Program::scale, "source"_a, "factor"_a, "out"_a)
      .def("softcap", &Program::softcap, "source"_a, "cap"_a, "out"_a)
      .def("add", &Program::add, "a"_a, "b"_a, "out"_a)
      .def("rope", &Program::rope, "source"_a, "heads"_a, "out"_a, "table"_a = 0)
      .def("kv_write", &Program::kv_write, "key"_a, "value"_a, "layer"_a)
      .def("split_kv_write", &Program::split_kv_write, "qkv"_a, "layer"_a, "out"_a)
      .def(
          "rope_kv_write",
          [](Program& self, int qkv, int heads, int layer, int out, int table,
             std::optional<Array<float, 1>> query_norm, std::optional<Array<float, 1>> key_norm,
             float eps) {
            self.rope_kv_write(qkv, heads, layer, out, table,
                               {values_of(query_norm), values_of(key_norm), eps});
          },
          "qkv"_a, "heads"_a, "layer"_a, "out"_a, "table"_a = 0,
          "query_norm"_a.noconvert().none() = nb::none(),
          "key_norm"_a.noconvert().none() = nb::none(), "eps"_a = 0.0f,
          "The norms have one weight for each dimension of a head.")
      .def("attention", &Program::attention, "query"_a, "heads"_a, "layer"_a, "out"_a,
           "window"_a = 0, "causal"_a = true, "scale"_a.none() = nb::none(), "cap"_a = 0.0f,
           "A window of 0 lets a token see all positions before it; without causality it sees all "
           "of its sequence, which must be whole in the batch. Without a scale it is one over the "
           "square root of a head's dimensions; a cap of 0 is none.")
      .def("select", &Program::select, "source"_a, "out"_a)
      .def("run", &run_program, "tokens"_a.noconvert(), "positions"_a.noconvert(),
           "starts"_a.noconvert(), "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(),
           "output"_a.noconvert(), "adapters"_a.noconvert().none() = nb::none(),
           "threads"_a = nb::none(),
           "Computes the batch into output [rows, width], on so many threads of the team.")
      .def("time", &time_program, "tokens"_a.noconvert(), "positions"_a.noconvert(),
           "starts"_a.noconvert(), "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(),
           "output"_a.noconvert(), "begin"_a, "end"_a, "threads"_a = nb::none(),
           "Seconds of the ops [begin, end) on such a batch; what they compute means nothing.")
      .def_prop_ro("ops", &Program::ops)
      .def_prop_ro("output_width", &Program::output_width)
      .def_prop_ro("isa", [](const Program& self) { return self.kernels().name; })
      .def_prop_ro("threads", &Program::threads)
      .def_prop_ro("output_width", &Program::output_width)
      .def_prop_ro("buffer_bytes", &Program::buffer_bytes);
}

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

NB_MODULE(_native, m) {
  m.doc() = "The native executor: packed weights, the KV cache, and programs over them.";
  bind_matrix(m);
  bind_lora(m);
  bind_packed_file(m);
  bind_cache(m);
  bind_program(m);
  bind_softmax(m);
  bind_probes(m);
}
