// The ops of a program. Each splits its work over the team; none allocates.
#pragma once

#include <memory>
#include <vector>

#include "program.h"

namespace hasten {

struct EmbedOp final : Op {
  std::shared_ptr<Matrix> matrix;
  const Buffer* out;
  void run(const Step&, const Worker&) const override;
};

// Into a float buffer, or fused with the quantisation that the next product needs.
struct RmsNormOp final : Op {
  const Kernels* kernels;
  const Buffer* in;
  std::vector<float> weight;
  float eps;
  const Buffer* out;
  void run(const Step&, const Worker&) const override;
};

struct QuantizeOp final : Op {
  const Kernels* kernels;
  const Buffer *in, *out;
  void run(const Step&, const Worker&) const override;
};

struct LinearOp final : Op {
  const Kernels* kernels;
  const Buffer* in;
  std::shared_ptr<Matrix> matrix;
  std::vector<float> bias;  // in panel order, or empty
  Epilogue epilogue;
  const Buffer* out;
  void run(const Step&, const Worker&) const override;
};

struct SiluMulOp final : Op {
  const Kernels* kernels;
  const Buffer *gate, *up, *out;
  void run(const Step&, const Worker&) const override;
};

struct AddOp final : Op {
  const Kernels* kernels;
  const Buffer *a, *b, *out;
  void run(const Step&, const Worker&) const override;
};

struct RopeOp final : Op {
  const Rope* rope;
  const Buffer *in, *out;
  int heads, head_dim;
  void run(const Step&, const Worker&) const override;
};

struct KvWriteOp final : Op {
  const KvCache* cache;
  const Buffer *key, *value;
  int layer;
  void run(const Step&, const Worker&) const override;
};

// RoPE on the queries and keys of one concatenated projection, and the KV write.
struct RopeKvWriteOp final : Op {
  const Rope* rope;
  const KvCache* cache;
  const Buffer *qkv, *out;
  int heads, layer;
  void run(const Step&, const Worker&) const override;
};

struct AttentionOp final : Op {
  const Kernels* kernels;
  const KvCache* cache;
  const Buffer *query, *out;
  int heads, layer, score_stride;
  int window;  // positions a token sees, 0 for all
  float scale;
  void run(const Step&, const Worker&) const override;

 private:
  void attend(const Step& step, const TokenRange& range, int kv_head, int head_begin,
              int head_end, float* scratch) const;
};

// Copies the rows whose logits are wanted.
struct SelectOp final : Op {
  const Buffer *in, *out;
  void run(const Step&, const Worker&) const override;
};

}  // namespace hasten
