// Programs as Python sees them: buffers, ops in the order that they run, and the KV cache.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings.h"
#include "kv_cache.h"
#include "lora.h"
#include "program.h"

namespace hasten {
namespace {

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
using Times = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

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
                 std::optional<Rows> adapters, std::optional<int> threads,
                 std::optional<Times> times) {
  if (times &&
      (times->shape(0) != 2 || times->shape(1) != static_cast<std::size_t>(program.ops()))) {
    reject("the times need a row of seconds and one of waiting, with a column for each op");
  }
  Step step =
      make_step(program, tokens, positions, starts, tables, logit_rows, output, adapters, threads);
  const Team::Times clock = times ? Team::Times{times->data(), times->data() + program.ops()}
                                  : Team::Times{nullptr, nullptr};
  nb::gil_scoped_release release;
  program.run(step, output.data(), times ? &clock : nullptr);
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

void bind_buffers(nb::class_<Program>& program) {
  program
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
      .def("set_cache", &Program::set_cache, "cache"_a);
}

void bind_ops(nb::class_<Program>& program) {
  program.def("embed", &Program::embed, "matrix"_a, "out"_a)
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
      .def("select", &Program::select, "source"_a, "out"_a);
}

void bind_adapters(nb::class_<Program>& program) {
  program.def("reserve_adapters", &Program::reserve_adapters, "slots"_a)
      .def("lora_shrink", &Program::lora_shrink, "source"_a, "out"_a,
           "A x of the tokens that have an adapter; returns the site to fill and to multiply with.")
      .def("set_adapter", &Program::set_adapter, "site"_a, "slot"_a, "pair"_a.none(),
           nb::call_guard<nb::gil_scoped_release>());
}

void bind_runs(nb::class_<Program>& program) {
  program
      .def("run", &run_program, "tokens"_a.noconvert(), "positions"_a.noconvert(),
           "starts"_a.noconvert(), "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(),
           "output"_a.noconvert(), "adapters"_a.noconvert().none() = nb::none(),
           "threads"_a = nb::none(), "times"_a.noconvert().none() = nb::none(),
           "Computes the batch into output [rows, width], on so many threads of the team; adds to "
           "times [2, ops] the seconds of each op, and those of them that the caller waited.")
      .def("time", &time_program, "tokens"_a.noconvert(), "positions"_a.noconvert(),
           "starts"_a.noconvert(), "block_tables"_a.noconvert(), "logit_rows"_a.noconvert(),
           "output"_a.noconvert(), "begin"_a, "end"_a, "threads"_a = nb::none(),
           "Seconds of the ops [begin, end) on such a batch; what they compute means nothing.")
      .def_prop_ro("ops", &Program::ops)
      .def_prop_ro("output_width", &Program::output_width)
      .def_prop_ro("isa", [](const Program& self) { return self.kernels().name; })
      .def_prop_ro("threads", &Program::threads)
      .def_prop_ro("buffer_bytes", &Program::buffer_bytes);
}

}  // namespace

void bind_program(nb::module_& m) {
  bind_cache(m);
  nb::class_<Program> program(m, "Program", "A lowered graph over numbered buffers.");
  bind_buffers(program);
  bind_ops(program);
  bind_adapters(program);
  bind_runs(program);
}

}  // namespace hasten
