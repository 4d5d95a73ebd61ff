// A lowered graph: ops over numbered buffers, run in one call by a team of threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "kv_cache.h"
#include "matrix.h"
#include "threads.h"

namespace hasten {

inline constexpr int kTokenBlock = 128;  // tokens whose int8 activations stay in the L2 cache

// One activation of every token (or, with `selected`, of every token whose logits are wanted).
struct Buffer {
  int width = 0;
  bool selected = false;
  bool external = false;  // the caller's output, bound at each run
  int group = 0;          // 0: float [tokens][width]; else int8 codes in groups
  float* data = nullptr;
  QuantizedView quantized{};
};

struct Rope {
  std::vector<float> cosine, sine;  // [positions][half]
  int positions = 0, half = 0;
};

// Weights of the norms that queries and keys pass head by head before they turn; empty for none.
struct HeadNorms {
  std::vector<float> query, key;  // [head_dim]
  float eps = 0.0f;
};

// Consecutive tokens of one sequence that attention handles together.
struct TokenRange {
  int sequence, begin, end;
};

// The rows of a buffer that LoRA adapters change, those of one adapter side by side.
struct AdapterRows {
  struct Group {
    int slot, begin, end;  // rows[begin] .. rows[end - 1], ascending
  };
  std::vector<std::int32_t> rows;
  std::vector<Group> groups, chunks;  // all rows of a slot; pieces that are worked on at once
};

// What one run computes; see hasten.types.Batch.
struct Step {
  const std::int32_t* tokens;
  const std::int32_t* positions;
  const std::int32_t* starts;
  const std::int32_t* tables;
  const std::int32_t* logit_rows;
  const std::int32_t* adapters;  // slot of each sequence, or null
  int count, sequences, table_width, selected;
  int threads;                      // that take part
  std::vector<std::int32_t> owner;  // sequence of each token
  std::vector<TokenRange> ranges;   // latest first: they take longest
  AdapterRows adapted_tokens, adapted_selected;
  const AdapterRows& adapted(const Buffer& buffer) const {
    return buffer.selected ? adapted_selected : adapted_tokens;
  }
  const std::int32_t* table(int sequence) const {
    return tables + static_cast<std::ptrdiff_t>(sequence) * table_width;
  }
};

// An op is a number of independent items, which threads take one by one.
class Op {
 public:
  virtual ~Op() = default;
  virtual int items(const Step& step) const = 0;
  // scratch: floats of the thread's own, enough for the widest buffer and for attention's scores.
  virtual void run(const Step& step, int item, float* scratch) const = 0;
  // How many parts of its weights are worth fetching into the cache before it runs, and fetching
  // one of them, for so many threads.
  virtual int parts() const { return 0; }
  virtual void fetch(int /*part*/, int /*threads*/) const {}
};

class LoraPair;
struct LoraSite;

class Program {
 public:
  // max_tokens: most tokens of a run; max_context: positions of the longest sequence.
  Program(int threads, const std::string& isa, int max_tokens, int max_selected, int max_context);
  ~Program();

  int add_buffer(int width, bool selected);
  int add_quantized_buffer(int width, int group, bool selected);
  int add_output(int width);
  // Returns the number of these tables: a model may rotate its layers by several.
  int add_rope(const float* cosine, const float* sine, int positions, int half);
  void set_cache(std::shared_ptr<KvCache> cache);

  void embed(std::shared_ptr<Matrix> matrix, int out);
  void embed_position(const float* table, int rows, int width, int offset, int out);
  void add_row(int in, const float* added, int n, int out);
  void layer_norm(int in, const float* weight, const float* bias, int n, float eps, int out);
  // Each run of weight.size() values of a row has a norm of its own: a row, or a head of it.
  void rms_norm(int in, std::vector<float> weight, float eps, int out);
  // With an order, column i of the codes is column order[i] of the values.
  void quantize(int in, int out, std::vector<std::int32_t> order);
  // lora: what lora_shrink returned for the same input, or -1.
  void linear(int in, std::shared_ptr<Matrix> matrix, int out, std::vector<float> bias,
              Epilogue epilogue, float scale, int lora);
  // LoRA adapters go into slots 0 .. slots - 1.
  void reserve_adapters(int slots);
  // A x of every token whose adapter changes the next product; returns the number of that site.
  int lora_shrink(int in, int out);
  // Fills a slot of a site, or empties it with null; waits for a run to end.
  void set_adapter(int site, int slot, std::shared_ptr<const LoraPair> pair);
  void silu_mul(int gate, int up, int out);
  void gelu(int in, bool tanh, int out);
  void gelu_mul(int gate, int up, int out);
  void scale(int in, float factor, int out);
  void softcap(int in, float cap, int out);
  void add(int a, int b, int out);
  void rope(int in, int heads, int out, int table);
  void kv_write(int key, int value, int layer);
  void split_kv_write(int qkv, int layer, int out);
  void rope_kv_write(int qkv, int heads, int layer, int out, int table, HeadNorms norms);
  void attention(int query, int heads, int layer, int out, int window, bool causal,
                 std::optional<float> scale, float cap);
  void select(int in, int out);

  // Checks the whole batch before it computes anything; throws std::invalid_argument.
  // output: [selected][width of the output buffer]. `times`, one entry an op, may be null.
  void run(Step& step, float* output, const Team::Times* times = nullptr);
  // Runs the ops [begin, end) alone and returns their seconds. They compute from whatever the
  // buffers hold, so nothing but the time means anything.
  double time(Step& step, float* output, int begin, int end);

  const Kernels& kernels() const { return *kernels_; }
  int threads() const { return threads_; }
  int ops() const { return static_cast<int>(ops_.size()); }
  std::size_t buffer_bytes() const { return buffer_bytes_; }
  int output_width() const;

 private:
  const Buffer& buffer(int id) const;
  const Buffer& float_buffer(int id) const;
  const Buffer& float_buffer(int id, int width) const;
  const Buffer& token_buffer(int id) const;  // float, with a row for every token
  const Buffer& token_buffer(int id, int width) const;
  static void require_same_rows(const Buffer& a, const Buffer& b);
  void check_width(int width) const;
  void check(const Step& step) const;
  const Rope& rope_tables(int table, int head_dim) const;
  void gated(int gate, int up, int out, decltype(Kernels::silu_mul) kernel);
  void mapped(int in, decltype(Kernels::scale) kernel, float parameter, int out);
  void prepare();
  void start(Step& step, float* output);
  void run_ops(const Step& step, int begin, int end, const Team::Times* times = nullptr);
  bool fetch_ahead(int op, int round) const;
  void group_adapters(Step& step) const;
  LoraSite& lora_site(int id) const;
  float* allocate(std::size_t floats);
  void push(std::unique_ptr<Op> op);
  const KvCache& cache(int layer) const;

  const Kernels* kernels_;
  int threads_, max_tokens_, max_selected_, max_context_;
  int positions_;  // that the model has a row or an angle for
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Memory> memories_;
  std::size_t buffer_bytes_ = 0;
  std::vector<float*> scratch_;
  std::vector<std::unique_ptr<Rope>> ropes_;
  std::shared_ptr<KvCache> cache_;
  int vocabulary_ = 0;
  bool whole_sequences_ = false;  // attention is not causal
  std::vector<std::unique_ptr<LoraSite>> sites_;
  int adapter_slots_ = 0;
  std::vector<std::unique_ptr<Op>> ops_;
  std::mutex running_;  // one run at a time: runs share the buffers
  std::vector<int> items_;
  std::atomic<int> first_{0}, active_{0};  // op and threads of the run, for threads that wait
  std::unique_ptr<Team> team_;
};

}  // namespace hasten
