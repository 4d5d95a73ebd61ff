#include "program.h"

#include <algorithm>
#include <chrono>

#include "checks.h"
#include "dispatch.h"
#include "lora.h"
#include "ops.h"

namespace hasten {
namespace {

constexpr int kRangeTokens = 16;  // tokens of a sequence that attention takes together
constexpr int kMaxThreads = 1024;
constexpr int kFetchRounds = 256;  // of 1 KiB each: half of a small second-level cache

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
  // A stride that is no power of two, or the scales of a token would fall into few cache sets.
  const std::size_t stride = round_up(static_cast<int>(rows), 16) + 16;
  view.stride = static_cast<int>(stride);
  view.padded = padded;
  view.group = group;
  view.groups = padded / group;
  view.codes = reinterpret_cast<std::int8_t*>(allocate((rows * padded + 3) / 4));
  view.scales = allocate(stride * view.groups);
  view.sums = allocate(stride * view.groups);
  view.totals = reinterpret_cast<std::int32_t*>(allocate(stride * view.groups));
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
  team_ = std::make_unique<Team>(
      threads_, ops(), [this](int phase, int round) { return fetch_ahead(phase, round); });
}

void Program::group_adapters(Step& step) const {
  for (AdapterRows* rows : {&step.adapted_tokens, &step.adapted_selected}) *rows = {};
  if (step.adapters == nullptr) return;
  const auto slot_of = [&](int token) { return step.adapters[step.owner[token]]; };
  group_rows(step.adapted_tokens, step.count, slot_of);
  group_rows(step.adapted_selected, step.selected,
             [&](int row) { return slot_of(step.logit_rows[row]); });
}

void Program::run(Step& step, float* output, const Team::Times* times) {
  const std::lock_guard<std::mutex> lock(running_);
  start(step, output);
  run_ops(step, 0, ops(), times);
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

// While a thread waits memory has nothing to do: the next weights come nearer meanwhile. Reading
// them is what one token's step takes its time for.
bool Program::fetch_ahead(int phase, int round) const {
  if (round >= kFetchRounds) return false;
  for (int op = first_.load(std::memory_order_relaxed) + phase + 1; op < ops(); ++op) {
    const int parts = ops_[op]->parts();
    if (round < parts) {
      ops_[op]->fetch(round, active_.load(std::memory_order_relaxed));
      return true;
    }
    round -= parts;
  }
  return false;
}

void Program::run_ops(const Step& step, int begin, int end, const Team::Times* times) {
  for (int i = begin; i < end; ++i) {
    items_[i] = ops_[i]->items(step);
    require(items_[i] <= Team::kMaxItems, "batch: too large for one run");
  }
  const auto work = [&](int phase, int item, int thread) {
    ops_[begin + phase]->run(step, item, scratch_[thread]);
  };
  first_.store(begin, std::memory_order_relaxed);
  active_.store(step.threads, std::memory_order_relaxed);
  const std::span<const int> items(items_);
  team_->run(items.subspan(begin, end - begin), work, step.threads, times);
}

}  // namespace hasten
