// The part of a program that adds ops: every one checks its buffers as it comes.
#include <cmath>

#include "checks.h"
#include "lora.h"
#include "ops.h"
#include "program.h"

namespace hasten {
namespace {

constexpr int kMaxAdapters = 4096;

}  // namespace

void Program::embed(std::shared_ptr<Matrix> matrix, int out) {
  auto op = std::make_unique<EmbedOp>();
  op->out = &token_buffer(out, matrix->view().columns);
  vocabulary_ = vocabulary_ == 0 ? matrix->view().rows : std::min(vocabulary_, matrix->view().rows);
  op->matrix = std::move(matrix);
  push(std::move(op));
}

void Program::embed_position(const float* table, int rows, int width, int offset, int out) {
  require(offset >= 0 && offset < rows, "embed_position: no row for the first position");
  auto op = std::make_unique<EmbedPositionOp>();
  op->table.assign(table, table + static_cast<std::size_t>(rows) * width);
  op->offset = offset;
  op->out = &token_buffer(out, width);
  positions_ = std::min(positions_, rows - offset);
  push(std::move(op));
}

void Program::add_row(int in, const float* added, int n, int out) {
  auto op = std::make_unique<AddRowOp>();
  op->kernels = kernels_;
  op->in = &float_buffer(in, n);
  op->added.assign(added, added + n);
  op->out = &float_buffer(out, n);
  require_same_rows(*op->in, *op->out);
  push(std::move(op));
}

void Program::layer_norm(int in, const float* weight, const float* bias, int n, float eps,
                         int out) {
  auto op = std::make_unique<LayerNormOp>();
  op->kernels = kernels_;
  op->in = &float_buffer(in, n);
  op->weight.assign(weight, weight + n);
  op->bias.assign(bias, bias + n);
  op->eps = eps;
  op->out = &buffer(out);
  require(op->out->width == n, "layer_norm: widths differ");
  require_same_rows(*op->in, *op->out);
  push(std::move(op));
}

void Program::rms_norm(int in, std::vector<float> weight, float eps, int out) {
  auto op = std::make_unique<RmsNormOp>();
  op->kernels = kernels_;
  op->in = &float_buffer(in);
  const int n = static_cast<int>(weight.size());
  require(n > 0 && op->in->width % n == 0, "rms_norm: the weight does not divide the width");
  op->heads = op->in->width / n;
  op->weight = std::move(weight);
  op->eps = eps;
  op->out = &buffer(out);
  require(op->out->width == op->in->width, "rms_norm: widths differ");
  require_same_rows(*op->in, *op->out);
  push(std::move(op));
}

void Program::quantize(int in, int out, std::vector<std::int32_t> order) {
  auto op = std::make_unique<QuantizeOp>();
  op->kernels = kernels_;
  op->out = &buffer(out);
  require(op->out->group > 0, "quantize needs a quantised output");
  op->in = &float_buffer(in, op->out->width);
  require_same_rows(*op->in, *op->out);
  require(order.empty() || order.size() == static_cast<std::size_t>(op->in->width),
          "quantize needs an order of as many columns as the values have");
  for (const std::int32_t column : order) {
    require(column >= 0 && column < op->in->width, "quantize: column out of range");
  }
  op->order = std::move(order);
  push(std::move(op));
}

void Program::linear(int in, std::shared_ptr<Matrix> matrix, int out, std::vector<float> bias,
                     Epilogue epilogue, float scale, int lora) {
  const MatrixView& view = matrix->view();
  auto op = std::make_unique<LinearOp>();
  op->kernels = kernels_;
  op->in = &buffer(in);
  const int group = view.group > 0 ? matrix->activation_group() : 0;
  require(op->in->width == view.columns && op->in->group == group,
          "linear: the input does not fit the matrix");
  const bool gated = is_gated(epilogue);
  require(!gated || view.rows % kPanelRows == 0, "linear: gated rows must fill whole panels");
  op->out = &buffer(out);
  require(op->out->group == 0 && (gated ? 2 * op->out->width <= view.rows &&
                                              2 * op->out->width + kPanelRows > view.rows
                                        : op->out->width == view.rows),
          "linear: the output does not fit the matrix");
  require_same_rows(*op->in, *op->out);
  require(bias.empty() || bias.size() == static_cast<std::size_t>(matrix->panels()) * kPanelRows,
          "linear: the bias does not fit the matrix");
  if (lora != -1) {
    LoraSite& site = lora_site(lora);
    require(site.in == op->in && site.rows == 0, "linear: the adapters belong to another product");
    site.rows = view.rows;
    op->lora = &site;
  }
  op->matrix = std::move(matrix);
  op->bias = std::move(bias);
  op->epilogue = epilogue;
  op->scale = scale;
  push(std::move(op));
}

void Program::reserve_adapters(int slots) {
  require(slots > 0 && slots <= kMaxAdapters, "between 1 and 4096 adapters are possible");
  require(adapter_slots_ == 0, "the adapters have their slots already");
  adapter_slots_ = slots;
}

int Program::lora_shrink(int in, int out) {
  require(adapter_slots_ > 0, "lora_shrink: no adapters are reserved");
  auto site = std::make_unique<LoraSite>();
  site->kernels = kernels_;
  site->in = &buffer(in);
  site->shrunk = &float_buffer(out);
  require(site->shrunk->width % kLoraRows == 0, "lora_shrink: ranks come in panels of 16");
  require_same_rows(*site->in, *site->shrunk);
  site->pairs.resize(adapter_slots_);
  auto op = std::make_unique<LoraShrinkOp>();
  op->site = site.get();
  push(std::move(op));
  sites_.push_back(std::move(site));
  return static_cast<int>(sites_.size()) - 1;
}

void Program::silu_mul(int gate, int up, int out) { gated(gate, up, out, kernels_->silu_mul); }

void Program::gelu_mul(int gate, int up, int out) { gated(gate, up, out, kernels_->gelu_mul); }

void Program::gated(int gate, int up, int out, decltype(Kernels::silu_mul) kernel) {
  auto op = std::make_unique<GatedOp>();
  op->kernel = kernel;
  op->gate = &float_buffer(gate);
  op->up = &float_buffer(up, op->gate->width);
  op->out = &float_buffer(out, op->gate->width);
  require_same_rows(*op->gate, *op->up);
  require_same_rows(*op->gate, *op->out);
  push(std::move(op));
}

void Program::gelu(int in, bool tanh, int out) {
  auto op = std::make_unique<GeluOp>();
  op->function = tanh ? kernels_->gelu_tanh : kernels_->gelu;
  op->in = &float_buffer(in);
  op->out = &float_buffer(out, op->in->width);
  require_same_rows(*op->in, *op->out);
  push(std::move(op));
}

void Program::scale(int in, float factor, int out) { mapped(in, kernels_->scale, factor, out); }

void Program::softcap(int in, float cap, int out) {
  require(cap > 0.0f, "softcap: the cap must be positive");
  mapped(in, kernels_->softcap, cap, out);
}

void Program::mapped(int in, decltype(Kernels::scale) kernel, float parameter, int out) {
  auto op = std::make_unique<MapOp>();
  op->kernel = kernel;
  op->parameter = parameter;
  op->in = &float_buffer(in);
  op->out = &float_buffer(out, op->in->width);
  require_same_rows(*op->in, *op->out);
  push(std::move(op));
}

void Program::add(int a, int b, int out) {
  auto op = std::make_unique<AddOp>();
  op->kernels = kernels_;
  op->a = &float_buffer(a);
  op->b = &float_buffer(b, op->a->width);
  op->out = &float_buffer(out, op->a->width);
  require_same_rows(*op->a, *op->b);
  require_same_rows(*op->a, *op->out);
  push(std::move(op));
}

void Program::rope(int in, int heads, int out, int table) {
  auto op = std::make_unique<RopeOp>();
  op->kernels = kernels_;
  op->in = &token_buffer(in);
  require(heads > 0 && op->in->width % heads == 0, "rope: heads do not divide the width");
  op->out = &token_buffer(out, op->in->width);
  op->heads = heads;
  op->head_dim = op->in->width / heads;
  op->rope = &rope_tables(table, op->head_dim);
  push(std::move(op));
}

void Program::kv_write(int key, int value, int layer) {
  auto op = std::make_unique<KvWriteOp>();
  op->kernels = kernels_;
  op->cache = &cache(layer);
  const int width = op->cache->kv_heads() * op->cache->head_dim();
  op->key = &token_buffer(key, width);
  op->value = &token_buffer(value, width);
  op->layer = layer;
  push(std::move(op));
}

void Program::split_kv_write(int qkv, int layer, int out) {
  auto op = std::make_unique<SplitKvWriteOp>();
  op->kernels = kernels_;
  op->cache = &cache(layer);
  op->out = &token_buffer(out);
  op->qkv = &token_buffer(qkv, op->out->width + 2 * op->cache->kv_heads() * op->cache->head_dim());
  op->layer = layer;
  push(std::move(op));
}

void Program::rope_kv_write(int qkv, int heads, int layer, int out, int table, HeadNorms norms) {
  auto op = std::make_unique<RopeKvWriteOp>();
  op->kernels = kernels_;
  op->cache = &cache(layer);
  const int dim = op->cache->head_dim();
  require(dim <= kMaxHeadDim, "heads may have at most 512 dimensions");
  require(heads > 0 && heads <= kMaxSize / kMaxHeadDim, "rope_kv_write: heads out of range");
  op->rope = &rope_tables(table, dim);
  for (const auto* weight : {&norms.query, &norms.key}) {
    require(weight->empty() || weight->size() == static_cast<std::size_t>(dim),
            "rope_kv_write: a norm needs one weight for each dimension of a head");
  }
  op->norms = std::move(norms);
  op->qkv = &token_buffer(qkv, (heads + 2 * op->cache->kv_heads()) * dim);
  op->out = &token_buffer(out, heads * dim);
  op->heads = heads;
  op->layer = layer;
  push(std::move(op));
}

void Program::attention(int query, int heads, int layer, int out, int window, bool causal,
                        std::optional<float> scale, float cap) {
  auto op = std::make_unique<AttentionOp>();
  op->kernels = kernels_;
  op->cache = &cache(layer);
  require(heads > 0 && heads <= kMaxSize / kMaxHeadDim && heads % op->cache->kv_heads() == 0,
          "attention: query heads must be a multiple of kv heads");
  require(window >= 0, "attention: a window cannot be negative");
  require(causal || window == 0, "attention: a window looks back only, so it must be causal");
  require(cap >= 0.0f, "attention: a cap cannot be negative");
  whole_sequences_ = whole_sequences_ || !causal;
  op->query = &token_buffer(query, heads * op->cache->head_dim());
  op->out = &token_buffer(out, heads * op->cache->head_dim());
  op->heads = heads;
  op->layer = layer;
  op->window = window;
  op->causal = causal;
  op->score_stride = round_up(max_context_, kKvBlock);
  op->scale = scale.value_or(1.0f / std::sqrt(static_cast<float>(op->cache->head_dim())));
  op->cap = cap;
  push(std::move(op));
}

void Program::select(int in, int out) {
  auto op = std::make_unique<SelectOp>();
  op->in = &token_buffer(in);
  op->out = &float_buffer(out, op->in->width);
  require(op->out->selected, "select goes from all rows to selected rows");
  push(std::move(op));
}

}  // namespace hasten
