// Holds one instruction set's kernels to the scalar ones, without Python: for emulators and
// sanitizers. Usage: kernels_check [isa]; prints a line for each op and exits with 1 on a
// difference.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "kv_cache.h"
#include "matrix.h"

namespace {

using namespace hasten;

constexpr int kMaxTokens = 21;  // every tile size and its remainders

std::mt19937 generator(1);  // the same values every time

std::vector<float> normal(std::size_t count, float scale = 1.0f) {
  std::normal_distribution<float> draw(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = draw(generator);
  return values;
}

template <class T>
std::vector<T> integers(std::size_t count, int low, int high) {
  std::uniform_int_distribution<int> draw(low, high);
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(draw(generator));
  return values;
}

// Half-precision bit patterns of magnitudes between 2^-5 and 2, both signs.
std::vector<std::uint16_t> halves(std::size_t count) {
  std::vector<std::uint16_t> bits = integers<std::uint16_t>(count, 0x2800, 0x4000);
  for (std::size_t i = 0; i < count; i += 3) bits[i] |= 0x8000;
  return bits;
}

// Largest difference, as a share of the largest magnitude.
float difference(const std::vector<float>& a, const std::vector<float>& b) {
  float worst = 0, largest = 1e-30f;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return INFINITY;
    worst = std::fmax(worst, std::fabs(a[i] - b[i]));
    largest = std::fmax(largest, std::fabs(b[i]));
  }
  return worst / largest;
}

// Activations in quantised form, with memory of their own.
struct Quantized {
  std::vector<std::int8_t> codes;
  std::vector<float> scales, sums;
  std::vector<std::int32_t> totals;
  QuantizedView view{};

  Quantized(const Kernels& kernels, const std::vector<float>& x, int columns, int group) {
    view.stride = kMaxTokens;
    view.padded = (columns + group - 1) / group * group;
    view.group = group;
    view.groups = view.padded / group;
    codes.resize(static_cast<std::size_t>(kMaxTokens) * view.padded);
    scales.resize(static_cast<std::size_t>(kMaxTokens) * view.groups);
    sums.resize(scales.size());
    totals.resize(scales.size());
    view.codes = codes.data();
    view.scales = scales.data();
    view.sums = sums.data();
    view.totals = totals.data();
    for (int t = 0; t < kMaxTokens; ++t) {
      kernels.quantize(x.data() + static_cast<std::size_t>(t) * columns, columns, view, t);
    }
  }
};

class Check {
 public:
  explicit Check(const Kernels& tested) : tested_(tested), scalar_(*scalar_kernels()) {}

  // compute(kernels) with both tables; rounding may differ by `tolerance` of the largest value.
  void same(const std::string& what, float tolerance,
            const std::function<std::vector<float>(const Kernels&)>& compute) {
    const float worst = difference(compute(tested_), compute(scalar_));
    const bool fine = worst <= tolerance;
    failures_ += !fine;
    std::printf("%-4s %-42s %.1e\n", fine ? "ok" : "FAIL", what.c_str(), worst);
  }
  int failures() const { return failures_; }

 private:
  const Kernels& tested_;
  const Kernels& scalar_;
  int failures_ = 0;
};

struct Form {
  const char* name;
  Format format;
  int group;
  bool minimum;
};

Matrix random_matrix(const Form& form, int rows, int columns) {
  Matrix matrix(std::make_shared<Arena>(), form.format, rows, columns, form.group, form.minimum);
  std::vector<std::int32_t> target(rows);
  std::iota(target.begin(), target.end(), 0);
  const auto padded = static_cast<std::size_t>(matrix.view().padded);
  if (form.group == 0) {
    matrix.place_float(normal(rows * padded).data(), target);
    return matrix;
  }
  const std::size_t groups = rows * padded / form.group;
  const auto scales = halves(groups), minimums = halves(groups);
  if (form.format == Format::int8) {
    matrix.place_int8(integers<std::int8_t>(rows * padded, -128, 127).data(), scales.data(),
                      form.minimum ? minimums.data() : nullptr, target);
  } else {
    matrix.place_int4(integers<std::uint8_t>(rows * padded / 2, 0, 255).data(), scales.data(),
                      form.minimum ? minimums.data() : nullptr, target);
  }
  return matrix;
}

void check_linear(Check& check, const Form& form, int rows, int columns, Epilogue epilogue) {
  const Matrix matrix = random_matrix(form, rows, columns);
  const auto x = normal(static_cast<std::size_t>(kMaxTokens) * columns);
  const auto bias = normal(static_cast<std::size_t>(matrix.panels()) * kPanelRows);
  const int width = is_gated(epilogue) ? rows / 2 : rows;
  const auto before = normal(static_cast<std::size_t>(kMaxTokens) * width);
  const std::string what = std::string("linear ") + form.name + " " + std::to_string(rows) + "x" +
                           std::to_string(columns) + " epilogue " +
                           std::to_string(static_cast<int>(epilogue));
  check.same(what, 1e-5f, [&](const Kernels& kernels) {
    // Both take the codes of the scalar kernels: a code that rounds the other way is no error.
    const int group = form.group == 0 ? 32 : matrix.activation_group();
    const Quantized q(*scalar_kernels(), x, columns, group);
    std::vector<float> y = before;
    const LinearArgs args{matrix.view(), x.data(), q.view,   bias.data(),
                          y.data(),      width,    epilogue, 0.5f};
    for (int tokens = 0, done = 0; done < kMaxTokens; ++tokens) {
      const int end = done + tokens < kMaxTokens ? done + tokens : kMaxTokens;
      kernels.linear(args, 0, matrix.panels(), done, end);
      done = end;
    }
    return y;
  });
}

void check_all_linear(Check& check) {
  const Form forms[] = {
      {"f32", Format::f32, 0, false},          {"bf16", Format::bf16, 0, false},
      {"int8:32", Format::int8, 32, false},    {"int8:64", Format::int8, 64, false},
      {"int8:192", Format::int8, 192, false},  {"int8:32+min", Format::int8, 32, true},
      {"int8:64+min", Format::int8, 64, true}, {"int4:32", Format::int4, 32, false},
      {"int4:64", Format::int4, 64, false},    {"int4:32+min", Format::int4, 32, true},
      {"int4:64+min", Format::int4, 64, true}};
  for (const Form& form : forms) {
    check_linear(check, form, 70, 180, Epilogue::store);
    check_linear(check, form, 33, 192, Epilogue::add);
    check_linear(check, form, 96, 190, Epilogue::silu_mul);
    check_linear(check, form, 70, 192, Epilogue::gelu);
    check_linear(check, form, 96, 190, Epilogue::gelu_mul);
  }
}

void check_rows(Check& check) {
  for (const int n : {1, 7, 33, 100}) {
    const auto a = normal(n, 3.0f), b = normal(n);
    const std::string size = " of " + std::to_string(n);
    check.same("rms_norm" + size, 1e-6f, [&](const Kernels& kernels) {
      std::vector<float> y(n);
      kernels.rms_norm(a.data(), b.data(), 1e-5f, n, y.data());
      return y;
    });
    check.same("softmax_weights" + size, 1e-6f, [&](const Kernels& kernels) {
      std::vector<float> y(a.size());
      std::vector<double> sums((a.size() + kSumBlock - 1) / kSumBlock);
      kernels.softmax_weights(a.data(), 5.0f, 0.7f, n, y.data(), sums.data());
      y.insert(y.end(), sums.begin(), sums.end());
      return y;
    });
    check.same("silu_mul" + size, 1e-6f, [&](const Kernels& kernels) {
      std::vector<float> y(n);
      kernels.silu_mul(a.data(), b.data(), n, y.data());
      return y;
    });
    check.same("layer_norm" + size, 1e-6f, [&](const Kernels& kernels) {
      std::vector<float> y(n);
      kernels.layer_norm(a.data(), b.data(), a.data(), 1e-5f, n, y.data());
      return y;
    });
    for (const auto gelu : {&Kernels::gelu, &Kernels::gelu_tanh}) {
      check.same("gelu" + size, 1e-6f, [&](const Kernels& kernels) {
        std::vector<float> y(n);
        (kernels.*gelu)(a.data(), n, y.data());
        return y;
      });
    }
    check.same("gelu_mul" + size, 1e-6f, [&](const Kernels& kernels) {
      std::vector<float> y(n);
      kernels.gelu_mul(a.data(), b.data(), n, y.data());
      return y;
    });
    check.same("softcap" + size, 1e-6f, [&](const Kernels& kernels) {
      std::vector<float> y(n);
      kernels.softcap(a.data(), 2.0f, n, y.data());
      return y;
    });
    check.same("add" + size, 0.0f, [&](const Kernels& kernels) {
      std::vector<float> y(n);
      kernels.add(a.data(), b.data(), n, y.data());
      return y;
    });
    const auto x = normal(static_cast<std::size_t>(kMaxTokens) * n);
    check.same("quantize" + size, 0.0f, [&](const Kernels& kernels) {
      const Quantized q(kernels, x, n, 32);
      std::vector<float> all(q.codes.begin(), q.codes.end());
      all.insert(all.end(), q.scales.begin(), q.scales.end());
      all.insert(all.end(), q.sums.begin(), q.sums.end());
      all.insert(all.end(), q.totals.begin(), q.totals.end());
      return all;
    });
  }
}

void check_attention(Check& check, KvFormat format, int dim, int queries, int window, float cap) {
  constexpr int kLength = 100;
  const std::vector<std::int32_t> table = {2, 0, 3, 1};
  const KvCache cache(format, 1, 4, 1, dim);
  for (int position = 0; position < kLength; ++position) {
    cache.write(*scalar_kernels(), 0, table[position / kKvBlock], 0, position % kKvBlock,
                normal(dim).data(), normal(dim).data());
  }
  const auto query = normal(static_cast<std::size_t>(queries) * dim);
  check.same("attention " + std::to_string(dim) + " kv " +
                 std::to_string(static_cast<int>(format)) + " queries " + std::to_string(queries),
             1e-5f, [&](const Kernels& kernels) {
               std::vector<float> out(query.size()), scores(kQueryTile * 128);
               AttentionArgs args{};
               for (int q = 0; q < queries; ++q) {
                 args.query[q] = query.data() + q * dim;
                 args.out[q] = out.data() + q * dim;
                 args.length[q] = kLength - 2 * (queries - q);
                 args.first[q] = window > 0 ? args.length[q] - window : 0;
               }
               args.queries = queries;
               args.blocks = table.data();
               args.cache = cache.head(0, 0, 0);
               args.block_stride = cache.block_stride();
               args.format = format;
               args.head_dim = dim;
               args.padded_dim = cache.padded_dim();
               args.scale = 1.0f / std::sqrt(static_cast<float>(dim));
               args.cap = cap;
               args.scores = scores.data();
               args.score_stride = 128;
               kernels.attention(args);
               return out;
             });
}

// Both products of an adapter, of every number of tokens and formats.
void check_lora(Check& check, Format format, int columns, int tokens) {
  constexpr int kPanels = 3;
  const std::size_t values = static_cast<std::size_t>(kPanels) * columns * kLoraRows;
  const auto floats = normal(values);
  std::vector<std::uint16_t> bits(values);
  for (std::size_t i = 0; i < values; ++i) bits[i] = float_to_bf16(floats[i]);
  const bool is_float = format == Format::f32;
  const auto* data = is_float ? reinterpret_cast<const std::uint8_t*>(floats.data())
                              : reinterpret_cast<const std::uint8_t*>(bits.data());
  std::vector<LoraPanel> panels;
  for (int p = 0; p < kPanels; ++p) {
    panels.push_back({data + values / kPanels * p * (is_float ? 4 : 2), p, columns});
  }
  const std::size_t width = columns + kPanels, rows = kPanels * kLoraRows;
  const auto x = normal(tokens * width), scales = normal(rows);
  for (const bool shrink : {true, false}) {
    const std::string what = std::string(shrink ? "lora_shrink " : "lora_expand ") +
                             (is_float ? "f32 " : "bf16 ") + std::to_string(columns) + " tokens " +
                             std::to_string(tokens);
    check.same(what, 1e-5f, [&](const Kernels& kernels) {
      std::vector<float> y(tokens * rows);
      std::vector<const float*> from;
      std::vector<float*> to;
      for (int t = 0; t < tokens; ++t) {
        from.push_back(x.data() + t * width);
        to.push_back(y.data() + t * rows);
      }
      (shrink ? kernels.lora_shrink : kernels.lora_expand)(
          {format, panels.data(), kPanels, scales.data(), from.data(), to.data(), tokens});
      return y;
    });
  }
}

int check_all(const std::string& isa) {
  std::printf("%s against scalar\n", isa.c_str());
  Check check(*kernels_for(isa));
  check_all_linear(check);
  check_rows(check);
  for (const KvFormat format : {KvFormat::f32, KvFormat::bf16, KvFormat::int8}) {
    for (int queries = 1; queries <= kQueryTile; ++queries) {
      check_attention(check, format, queries == 1 ? 2 : 80, queries, queries == 2 ? 33 : 0,
                      queries == 3 ? 2.0f : 0.0f);
    }
  }
  for (const Format format : {Format::f32, Format::bf16}) {
    for (const int tokens : {1, 2, 5, 12, 23}) {
      for (const int columns : {1, 16, 101}) check_lora(check, format, columns, tokens);
    }
  }
  std::printf("%d failures\n", check.failures());
  return check.failures();
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return check_all(count > 1 ? arguments[1] : available_isas().front()) > 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
