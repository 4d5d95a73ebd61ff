// The ops of a program. None allocates while it runs.
#pragma once

#include <memory>
#include <vector>

#include "program.h"

namespace hasten {

struct EmbedOp final : Op {
  std::shared_ptr<Matrix> matrix;
  const Buffer* out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

struct EmbedPositionOp final : Op {
  std::vector<float> table;  // [positions][width]
  int offset;                // position p has row p + offset
  const Buffer* out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

// The same row added to every token.
struct AddRowOp final : Op {
  const Kernels* kernels;
  const Buffer* in;
  std::vector<float> added;
  const Buffer* out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

// Into a float buffer, or fused with the quantisation that the next product needs.
struct RmsNormOp final : Op {
  const Kernels* kernels;
  const Buffer* in;
  std::vector<float> weight;  // [width / heads]
  int heads;
  float eps;
  const Buffer* out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
  int parts() const override;
  void fetch(int part, int threads) const override;
};

struct LayerNormOp final : Op {
  const Kernels* kernels;
  const Buffer* in;
  std::vector<float> weight, bias;
  float eps;
  const Buffer* out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

struct QuantizeOp final : Op {
  const Kernels* kernels;
  const Buffer *in, *out;
  std::vector<std::int32_t> order;  // column i of the codes is column order[i]; empty: as they are
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

struct LinearOp final : Op {
  const Kernels* kernels;
  const Buffer* in;
  std::shared_ptr<Matrix> matrix;
  std::vector<float> bias;  // in panel order, or empty
  Epilogue epilogue;
  float scale;
  const Buffer* out;
  const LoraSite* lora = nullptr;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
  int parts() const override;
  void fetch(int part, int threads) const override;

 private:
  // The product with what adapters add; false if no token of the item has one.
  bool run_adapted(const Step& step, LinearArgs args, int panel, int panel_end, int token,
                   int token_end, float* scratch) const;
  // An item is a chunk of panels for a block of tokens.
  struct Split {
    int rows, token_block, token_blocks, chunks, threads;
    // Threads take items in turn; so each goes on where it was, and what it prefetched is its own.
    int chunk(int index) const { return index % threads * (chunks / threads) + index / threads; }
  };
  Split split(const Step& step) const;
};

// activation(gate) * up
struct GatedOp final : Op {
  void (*kernel)(const float* gate, const float* up, int n, float* y);
  const Buffer *gate, *up, *out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

struct GeluOp final : Op {
  void (*function)(const float* x, int n, float* y);  // of the kernels
  const Buffer *in, *out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

// A function of single values with one parameter; in and out may be one buffer.
struct MapOp final : Op {
  void (*kernel)(const float* x, float parameter, int n, float* y);
  float parameter;
  const Buffer *in, *out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

struct AddOp final : Op {
  const Kernels* kernels;
  const Buffer *a, *b, *out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

struct RopeOp final : Op {
  const Kernels* kernels;
  const Rope* rope;
  const Buffer *in, *out;
  int heads, head_dim;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

struct KvWriteOp final : Op {
  const Kernels* kernels;
  const KvCache* cache;
  const Buffer *key, *value;
  int layer;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

// Takes one concatenated projection apart: queries, and keys and values into the cache.
struct SplitKvWriteOp final : Op {
  const Kernels* kernels;
  const KvCache* cache;
  const Buffer *qkv, *out;
  int layer;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

// Norms (where there are any) and RoPE on the queries and keys of one concatenated projection, and
// the KV write.
struct RopeKvWriteOp final : Op {
  const Kernels* kernels;
  const Rope* rope;
  HeadNorms norms;
  const KvCache* cache;
  const Buffer *qkv, *out;
  int heads, layer;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;

 private:
  void turn(const Step& step, int token, const float* head, const std::vector<float>& norm,
            float* out) const;
};

struct AttentionOp final : Op {
  const Kernels* kernels;
  const KvCache* cache;
  const Buffer *query, *out;
  int heads, layer, score_stride;
  int window;   // positions a token sees, 0 for all
  bool causal;  // a token sees no later positions
  float scale, cap;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;

 private:
  int head_split(const Step& step) const;
  void attend(const Step& step, const TokenRange& range, int kv_head, int head_begin, int head_end,
              float* scratch) const;
};

// Copies the rows whose logits are wanted.
struct SelectOp final : Op {
  const Buffer *in, *out;
  int items(const Step&) const override;
  void run(const Step&, int item, float* scratch) const override;
};

}  // namespace hasten
