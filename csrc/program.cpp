#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "dispatch.h"
#include "lora.h"
#include "ops.h"

namespace hasten {
namespace {

constexpr int kRangeTokens = 16;  // tokens of a sequence that attention takes together
constexpr int kMaxThreads = 1024;
constexpr int kMaxAdapters = 4096;
constexpr int kMaxSize = 1 << 24;  // tokens, positions, widths: products of two fit 64 bits

[[noreturn]] void reject(const std::string& what) { throw std::invalid_argument(what); }

void require(bool fine, const char* what) {
  if (!fine) reject(what);
}

int round_up(int value, int step) { return (value + step - 1) / step * step; }

template <class SlotOf>
void group_rows(AdapterRows& adapted, int count, SlotOf slot_of) {
  for (int row = 0; row < count; ++row) {
    if (slot_of(row) >= 0) adapted.rows.push_back(row);
  }
  std::stable_sort(adapted.rows.begin(), adapted.rows.end(),
                   [&](int a, int b) { return slot_of(a) < slot_of(b); });
  const int size = static_cast<int>(adapted.rows.size());
  for (int begin = 0, end = 0; begin < size; begin = end) {
    const int slot = slot_of(adapted.rows[begin]);
    while (end < size && slot_of(adapted.rows[end]) == slot) ++end;
    adapted.groups.push_back({slot, begin, end});
    for (int first = begin; first < end; first += kLoraChunk) {
      adapted.chunks.push_back({slot, first, std::min(first + kLoraChunk, end)});
    }
  }
}

}  // namespace

Program::Program(int threads, const std::string& isa, int max_tokens, int max_selected,
                 int max_context)
    : kernels_(kernels_for(isa)),
      threads_(threads),
      max_tokens_(max_tokens),
      max_selected_(max_selected),
      max_context_(max_context),
      positions_(max_context) {
  require(threads > 0 && threads <= kMaxThreads, "threads must be between 1 and 1024");
  for (const int limit : {max_tokens, max_selected, max_context}) {
    require(limit > 0 && limit <= kMaxSize, "limits must be between 1 and 2^24");
  }
}

Program::~Program() = default;

float* Program::allocate(std::size_t floats) {
  memories_.emplace_back(floats * sizeof(float));
  buffer_bytes_ += floats * sizeof(float);
  return reinterpret_cast<float*>(memories_.back().data());
}

void Program::check_width(int width) const {
  require(team_ == nullptr, "the program has run and takes no further buffers");
  require(width > 0 && width <= kMaxSize, "a buffer needs a width between 1 and 2^24");
}

void Program::push(std::unique_ptr<Op> op) {
  require(team_ == nullptr, "the program has run and takes no further ops");
  ops_.push_back(std::move(op));
}

int Program::add_buffer(int width, bool selected) {
  check_width(width);
  auto buffer = std::make_unique<Buffer>();
  buffer->width = width;
  buffer->selected = selected;
  buffer->data = allocate(static_cast<std::size_t>(selected ? max_selected_ : max_tokens_) * width);
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size()) - 1;
}

int Program::add_quantized_buffer(int width, int group, bool selected) {
  check_width(width);
  require(group == 32 || group == 64, "activation groups have 32 or 64 columns");
  const int padded = round_up(round_up(width, kBlock), group);
  const auto rows = static_cast<std::size_t>(selected ? max_selected_ : max_tokens_);
  auto buffer = std::make_unique<Buffer>();
  buffer->width = width;
  buffer->selected = selected;
  buffer->group = group;
  QuantizedView& view = buffer->quantized;
  view.rows = static_cast<int>(rows);
  view.padded = padded;
  view.group = group;
  view.groups = padded / group;
  view.codes = reinterpret_cast<std::int8_t*>(allocate((rows * padded + 3) / 4));
  view.scales = allocate(rows * view.groups);
  view.sums = allocate(rows * view.groups);
  view.totals = reinterpret_cast<std::int32_t*>(allocate(rows * view.groups));
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size()) - 1;
}

int Program::add_output(int width) {
  check_width(width);
  require(output_width() == 0, "the program has an output already");
  auto buffer = std::make_unique<Buffer>();
  buffer->width = width;
  buffer->selected = true;
  buffer->external = true;
  buffers_.push_back(std::move(buffer));
  return static_cast<int>(buffers_.size()) - 1;
}

int Program::output_width() const {
  for (const auto& buffer : buffers_) {
    if (buffer->external) return buffer->width;
  }
  return 0;
}

int Program::add_rope(const float* cosine, const float* sine, int positions, int half) {
  require(positions > 0 && half > 0, "rope: empty tables");
  const std::size_t size = static_cast<std::size_t>(positions) * half;
  ropes_.push_back(
      std::make_unique<Rope>(Rope{{cosine, cosine + size}, {sine, sine + size}, positions, half}));
  positions_ = std::min(positions_, positions);
  return static_cast<int>(ropes_.size()) - 1;
}

const Rope& Program::rope_tables(int table, int head_dim) const {
  require(table >= 0 && table < static_cast<int>(ropes_.size()), "rope: no such tables");
  require(2 * ropes_[table]->half <= head_dim, "rope: the tables are wider than a head");
  return *ropes_[table];
}

void Program::set_cache(std::shared_ptr<KvCache> cache) {
  require(cache_ == nullptr, "the program has a KV cache already");
  cache_ = std::move(cache);
}

const Buffer& Program::buffer(int id) const {
  if (id < 0 || id >= static_cast<int>(buffers_.size())) {
    reject("no buffer " + std::to_string(id));
  }
  return *buffers_[id];
}

const Buffer& Program::float_buffer(int id, int width) const {
  const Buffer& found = buffer(id);
  if (found.group != 0 || found.width != width) {
    reject("buffer " + std::to_string(id) + " is not float of width " + std::to_string(width));
  }
  return found;
}

const Buffer& Program::float_buffer(int id) const { return float_buffer(id, buffer(id).width); }

const Buffer& Program::token_buffer(int id, int width) const {
  const Buffer& found = float_buffer(id, width);
  if (found.selected) reject("buffer " + std::to_string(id) + " holds selected rows only");
  return found;
}

const Buffer& Program::token_buffer(int id) const { return token_buffer(id, buffer(id).width); }

void Program::require_same_rows(const Buffer& a, const Buffer& b) {
  require(a.selected == b.selected, "one buffer holds all rows and one the selected rows");
}

const KvCache& Program::cache(int layer) const {
  require(cache_ != nullptr, "the program has no KV cache");
  require(layer >= 0 && layer < cache_->layers(), "no such layer in the KV cache");
  return *cache_;
}

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

LoraSite& Program::lora_site(int id) const {
  require(id >= 0 && id < static_cast<int>(sites_.size()), "no such place for adapters");
  return *sites_[id];
}

void Program::set_adapter(int site, int slot, std::shared_ptr<const LoraPair> pair) {
  LoraSite& found = lora_site(site);
  require(slot >= 0 && slot < adapter_slots_, "adapter slot out of range");
  require(pair == nullptr || (pair->columns() == found.in->width && pair->rows() == found.rows &&
                              pair->rank() <= found.shrunk->width),
          "the adapter does not fit the product");
  const std::lock_guard<std::mutex> lock(running_);
  found.pairs[slot] = std::move(pair);
}

void Program::silu_mul(int gate, int up, int out) { gated(gate, up, out, kernels_->silu_mul); }

void Program::gelu_mul(int gate, int up, int out) { gated(gate, up, out, kernels_->gelu_mul); }

void Program::gated(int gate, int up, int out,
                    void (*kernel)(const float*, const float*, int, float*)) {
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

void Program::scale(int in, float factor, int out) {
  auto op = std::make_unique<MapOp>();
  op->kernel = kernels_->scale;
  op->parameter = factor;
  op->in = &float_buffer(in);
  op->out = &float_buffer(out, op->in->width);
  require_same_rows(*op->in, *op->out);
  push(std::move(op));
}

void Program::softcap(int in, float cap, int out) {
  require(cap > 0.0f, "softcap: the cap must be positive");
  auto op = std::make_unique<MapOp>();
  op->kernel = kernels_->softcap;
  op->parameter = cap;
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

void Program::check(const Step& step) const {
  require(step.threads > 0 && step.threads <= threads_, "batch: number of threads out of range");
  require(step.count > 0 && step.count <= max_tokens_, "batch: number of tokens out of range");
  require(step.selected >= 0 && step.selected <= max_selected_,
          "batch: number of logit rows out of range");
  require(step.starts[0] == 0 && step.starts[step.sequences] == step.count,
          "batch: starts must begin with 0 and end with the number of tokens");
  for (int s = 0; s < step.sequences; ++s) {
    require(step.starts[s] < step.starts[s + 1], "batch: starts must rise");
    require(!whole_sequences_ || step.positions[step.starts[s]] == 0,
            "batch: attention that is not causal needs whole sequences");
  }
  for (int s = 0; s < step.sequences; ++s) {
    for (int t = step.starts[s]; t < step.starts[s + 1]; ++t) {
      const int position = step.positions[t];
      require(step.tokens[t] >= 0 && step.tokens[t] < vocabulary_, "batch: token out of range");
      require(position >= 0 && position < positions_, "batch: position out of range");
      require(t == step.starts[s] || position == step.positions[t - 1] + 1,
              "batch: positions of a sequence must follow each other");
    }
    if (cache_ == nullptr) continue;
    const int used = step.positions[step.starts[s + 1] - 1] / kKvBlock + 1;
    require(used <= step.table_width, "batch: block table too short");
    for (int b = 0; b < used; ++b) {
      require(step.table(s)[b] >= 0 && step.table(s)[b] < cache_->blocks(),
              "batch: KV block out of range");
    }
  }
  for (int i = 0; i < step.selected; ++i) {
    require(step.logit_rows[i] >= 0 && step.logit_rows[i] < step.count,
            "batch: logit row out of range");
  }
  for (int s = 0; step.adapters != nullptr && s < step.sequences; ++s) {
    require(step.adapters[s] >= -1 && step.adapters[s] < adapter_slots_,
            "batch: adapter slot out of range");
  }
}

// What only a complete program can size.
void Program::prepare() {
  int widest = kQueryTile * round_up(max_context_, kKvBlock);
  for (const auto& buffer : buffers_) {
    if (!buffer->external) widest = std::max(widest, buffer->width);
  }
  for (const auto& site : sites_) {
    widest = std::max({widest, kLoraChunk * site->in->width, kDeltaFloats});
  }
  for (int i = 0; i < threads_; ++i) scratch_.push_back(allocate(widest));
  items_.resize(ops_.size());
  team_ = std::make_unique<Team>(threads_, static_cast<int>(ops_.size()));
}

void Program::group_adapters(Step& step) const {
  for (AdapterRows* rows : {&step.adapted_tokens, &step.adapted_selected}) *rows = {};
  if (step.adapters == nullptr) return;
  const auto slot_of = [&](int token) { return step.adapters[step.owner[token]]; };
  group_rows(step.adapted_tokens, step.count, slot_of);
  group_rows(step.adapted_selected, step.selected,
             [&](int row) { return slot_of(step.logit_rows[row]); });
}

void Program::run(Step& step, float* output) {
  const std::lock_guard<std::mutex> lock(running_);
  start(step, output);
  run_ops(step, 0, ops());
}

double Program::time(Step& step, float* output, int begin, int end) {
  const std::lock_guard<std::mutex> lock(running_);
  require(begin >= 0 && begin < end && end <= ops(), "no such ops");
  start(step, output);
  const auto started = std::chrono::steady_clock::now();
  run_ops(step, begin, end);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

// Checks the step and derives what the ops share.
void Program::start(Step& step, float* output) {
  check(step);
  if (team_ == nullptr) prepare();
  for (const auto& buffer : buffers_) {
    if (buffer->external) buffer->data = output;
  }
  step.owner.resize(step.count);
  step.ranges.clear();
  for (int s = 0; s < step.sequences; ++s) {
    for (int t = step.starts[s]; t < step.starts[s + 1]; ++t) step.owner[t] = s;
    for (int t = step.starts[s]; t < step.starts[s + 1]; t += kRangeTokens) {
      step.ranges.push_back({s, t, std::min(t + kRangeTokens, step.starts[s + 1])});
    }
  }
  std::reverse(step.ranges.begin(), step.ranges.end());
  group_adapters(step);
}

void Program::run_ops(const Step& step, int begin, int end) {
  for (int i = begin; i < end; ++i) {
    items_[i] = ops_[i]->items(step);
    require(items_[i] <= Team::kMaxItems, "batch: too large for one run");
  }
  const auto work = [&](int phase, int item, int thread) {
    ops_[begin + phase]->run(step, item, scratch_[thread]);
  };
  const std::span<const int> items(items_);
  team_->run(items.subspan(begin, end - begin), work, step.threads);
}

}  // namespace hasten
