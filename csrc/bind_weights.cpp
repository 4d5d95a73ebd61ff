// Weights as Python sees them: matrices, LoRA adapters, the file of packed matrices.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings.h"
#include "lora.h"
#include "matrix.h"
#include "packed_file.h"

namespace hasten {
namespace {

Format parse_format(const std::string& name) {
  if (name == "f32") return Format::f32;
  if (name == "bf16") return Format::bf16;
  if (name == "int8") return Format::int8;
  if (name == "int4") return Format::int4;
  reject("unknown weight format '" + name + "'");
}

std::shared_ptr<Matrix> make_matrix(const std::string& format, int rows, int columns, int group,
                                    bool minimum, std::shared_ptr<Arena> arena) {
  const Format kind = parse_format(format);
  const bool integer = kind == Format::int8 || kind == Format::int4;
  if (rows < 1 || columns < 1 || rows > kMaxSize || columns > kMaxSize) {
    reject("a matrix needs between 1 and 2^24 rows and columns");
  }
  const int padded = round_up(columns, kBlock);
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

}  // namespace

void bind_weights(nb::module_& m) {
  bind_matrix(m);
  bind_lora(m);
  bind_packed_file(m);
}

}  // namespace hasten
