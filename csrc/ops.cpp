#include "ops.h"

#include <algorithm>
#include <cstring>

#include "lora.h"

namespace hasten {
namespace {

constexpr int kFloatTokenBlock = 48;

int rows_of(const Step& step, const Buffer& buffer) {
  return buffer.selected ? step.selected : step.count;
}

float* row(const Buffer& buffer, int index) {
  return buffer.data + static_cast<std::ptrdiff_t>(index) * buffer.width;
}

int divide_up(int value, int step) { return (value + step - 1) / step; }

// Of many rows 16 go together: their scales share a cache line, which two threads would fight for.
int rows_per_item(int rows) { return rows < 64 ? 4 : 16; }

int row_items(int rows) { return divide_up(rows, rows_per_item(rows)); }

template <class Work>
void for_rows(int item, int rows, Work work) {
  const int count = rows_per_item(rows), end = std::min((item + 1) * count, rows);
  for (int i = item * count; i < end; ++i) work(i);
}

void rotate(const Kernels& kernels, const Rope& rope, int position, const float* x, int dim,
            float* y) {
  const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(position) * rope.half;
  kernels.rotate(x, rope.cosine.data() + first, rope.sine.data() + first, rope.half, dim, y);
}

void write_position(const Kernels& kernels, const Step& step, const KvCache& cache, int layer,
                    int token, int kv_head, const float* key, const float* value) {
  const int position = step.positions[token];
  const int block = step.table(step.owner[token])[position / kKvBlock];
  cache.write(kernels, layer, block, kv_head, position % kKvBlock, key, value);
}

constexpr int kPart = 1024;  // bytes fetched at once: as many lines as a core has under way

// The part of these bytes that lies in them.
void fetch_part(const void* data, std::ptrdiff_t bytes, std::ptrdiff_t part) {
  const auto* first = static_cast<const char*>(data);
  for (std::ptrdiff_t i = part * kPart; i < std::min((part + 1) * kPart, bytes); i += 64) {
    __builtin_prefetch(first + i, 0, 2);
  }
}

}  // namespace

int EmbedOp::items(const Step& step) const { return row_items(step.count); }

void EmbedOp::run(const Step& step, int item, float*) const {
  for_rows(item, step.count, [&](int t) { matrix->unpack_row(step.tokens[t], row(*out, t)); });
}

int EmbedPositionOp::items(const Step& step) const { return row_items(step.count); }

void EmbedPositionOp::run(const Step& step, int item, float*) const {
  for_rows(item, step.count, [&](int t) {
    const std::ptrdiff_t index = step.positions[t] + offset;
    std::memcpy(row(*out, t), table.data() + index * out->width, sizeof(float) * out->width);
  });
}

int AddRowOp::items(const Step& step) const { return row_items(rows_of(step, *in)); }

void AddRowOp::run(const Step& step, int item, float*) const {
  for_rows(item, rows_of(step, *in),
           [&](int t) { kernels->add(row(*in, t), added.data(), in->width, row(*out, t)); });
}

int RmsNormOp::items(const Step& step) const { return row_items(rows_of(step, *in)); }

void RmsNormOp::run(const Step& step, int item, float* scratch) const {
  for_rows(item, rows_of(step, *in), [&](int t) {
    float* y = out->group > 0 ? scratch : row(*out, t);
    const int n = in->width / heads;
    for (int h = 0; h < heads; ++h) {
      kernels->rms_norm(row(*in, t) + h * n, weight.data(), eps, n, y + h * n);
    }
    if (out->group > 0) kernels->quantize(y, in->width, out->quantized, t);
  });
}

int RmsNormOp::parts() const {
  return divide_up(static_cast<int>(weight.size() * sizeof(float)), kPart);
}

void RmsNormOp::fetch(int part, int) const {
  fetch_part(weight.data(), weight.size() * sizeof(float), part);
}

int LayerNormOp::items(const Step& step) const { return row_items(rows_of(step, *in)); }

void LayerNormOp::run(const Step& step, int item, float* scratch) const {
  for_rows(item, rows_of(step, *in), [&](int t) {
    float* y = out->group > 0 ? scratch : row(*out, t);
    kernels->layer_norm(row(*in, t), weight.data(), bias.data(), eps, in->width, y);
    if (out->group > 0) kernels->quantize(y, in->width, out->quantized, t);
  });
}

int QuantizeOp::items(const Step& step) const { return row_items(rows_of(step, *in)); }

void QuantizeOp::run(const Step& step, int item, float* scratch) const {
  for_rows(item, rows_of(step, *in), [&](int t) {
    const float* x = row(*in, t);
    if (!order.empty()) {
      for (int i = 0; i < in->width; ++i) scratch[i] = x[order[i]];
      x = scratch;
    }
    kernels->quantize(x, in->width, out->quantized, t);
  });
}

LinearOp::Split LinearOp::split(const Step& step) const {
  Split split{};
  split.rows = rows_of(step, *out);
  split.token_block = in->group > 0 ? kTokenBlock : kFloatTokenBlock;
  split.token_blocks = divide_up(split.rows, split.token_block);
  // A few chunks a thread even out a stalled one.
  split.threads = std::min(matrix->panels(), step.threads);
  split.chunks = std::min(matrix->panels() / split.threads, 4) * split.threads;
  return split;
}

int LinearOp::items(const Step& step) const {
  const Split part = split(step);
  return part.chunks * part.token_blocks;
}

void LinearOp::run(const Step& step, int item, float* scratch) const {
  const Split part = split(step);
  const LinearArgs args{
      matrix->view(), in->data,   in->quantized, bias.empty() ? nullptr : bias.data(),
      out->data,      out->width, epilogue,      scale};
  const std::int64_t chunk = part.chunk(item / part.token_blocks), panels = matrix->panels();
  const int panel = static_cast<int>(chunk * panels / part.chunks);
  const int panel_end = static_cast<int>((chunk + 1) * panels / part.chunks);
  const int token = item % part.token_blocks * part.token_block;
  const int token_end = std::min(token + part.token_block, part.rows);
  if (!run_adapted(step, args, panel, panel_end, token, token_end, scratch)) {
    kernels->linear(args, panel, panel_end, token, token_end);
  }
}

int LinearOp::parts() const { return static_cast<int>(matrix->bytes() / kPart); }

// Each thread starts with a chunk of its own.
void LinearOp::fetch(int part, int threads) const {
  const std::int64_t thread = part % threads, panels = matrix->panels();
  const std::size_t first = thread * panels / threads * matrix->view().panel_bytes;
  fetch_part(matrix->view().data + first, matrix->bytes() - first, part / threads);
}

bool LinearOp::run_adapted(const Step& step, LinearArgs args, int panel, int panel_end, int token,
                           int token_end, float* scratch) const {
  if (lora == nullptr || step.adapted(*in).rows.empty()) return false;
  const float* delta[kTokenBlock];
  args.delta = delta;
  args.delta_token = token;
  const int together = std::max(1, kDeltaFloats / ((token_end - token) * kPanelRows));
  for (; panel < panel_end; panel += together) {
    const int end = std::min(panel + together, panel_end);
    if (!lora->expand(step, panel, end, token, token_end, scratch, delta)) return false;
    args.delta_panel = panel;
    kernels->linear(args, panel, end, token, token_end);
  }
  return true;
}

int GatedOp::items(const Step& step) const { return row_items(rows_of(step, *out)); }

void GatedOp::run(const Step& step, int item, float*) const {
  for_rows(item, rows_of(step, *out),
           [&](int t) { kernel(row(*gate, t), row(*up, t), out->width, row(*out, t)); });
}

int MapOp::items(const Step& step) const { return row_items(rows_of(step, *out)); }

void MapOp::run(const Step& step, int item, float*) const {
  for_rows(item, rows_of(step, *out),
           [&](int t) { kernel(row(*in, t), parameter, out->width, row(*out, t)); });
}

int GeluOp::items(const Step& step) const { return row_items(rows_of(step, *in)); }

void GeluOp::run(const Step& step, int item, float*) const {
  for_rows(item, rows_of(step, *in),
           [&](int t) { function(row(*in, t), in->width, row(*out, t)); });
}

int AddOp::items(const Step& step) const { return row_items(rows_of(step, *out)); }

void AddOp::run(const Step& step, int item, float*) const {
  for_rows(item, rows_of(step, *out),
           [&](int t) { kernels->add(row(*a, t), row(*b, t), out->width, row(*out, t)); });
}

int RopeOp::items(const Step& step) const { return row_items(step.count); }

void RopeOp::run(const Step& step, int item, float*) const {
  for_rows(item, step.count, [&](int t) {
    for (int h = 0; h < heads; ++h) {
      rotate(*kernels, *rope, step.positions[t], row(*in, t) + h * head_dim, head_dim,
             row(*out, t) + h * head_dim);
    }
  });
}

int KvWriteOp::items(const Step& step) const { return row_items(step.count); }

void KvWriteOp::run(const Step& step, int item, float*) const {
  const int dim = cache->head_dim();
  for_rows(item, step.count, [&](int t) {
    for (int h = 0; h < cache->kv_heads(); ++h) {
      write_position(*kernels, step, *cache, layer, t, h, row(*key, t) + h * dim,
                     row(*value, t) + h * dim);
    }
  });
}

int SplitKvWriteOp::items(const Step& step) const { return row_items(step.count); }

void SplitKvWriteOp::run(const Step& step, int item, float*) const {
  const int dim = cache->head_dim(), kv_heads = cache->kv_heads();
  for_rows(item, step.count, [&](int t) {
    const float* key = row(*qkv, t) + out->width;
    const float* value = key + kv_heads * dim;
    std::memcpy(row(*out, t), row(*qkv, t), sizeof(float) * out->width);
    for (int h = 0; h < kv_heads; ++h) {
      write_position(*kernels, step, *cache, layer, t, h, key + h * dim, value + h * dim);
    }
  });
}

int RopeKvWriteOp::items(const Step& step) const { return row_items(step.count); }

// `norm` may be empty.
void RopeKvWriteOp::turn(const Step& step, int token, const float* head,
                         const std::vector<float>& norm, float* out) const {
  const int dim = cache->head_dim();
  if (!norm.empty()) {
    kernels->rms_norm(head, norm.data(), norms.eps, dim, out);
    head = out;
  }
  rotate(*kernels, *rope, step.positions[token], head, dim, out);
}

void RopeKvWriteOp::run(const Step& step, int item, float* scratch) const {
  const int dim = cache->head_dim(), kv_heads = cache->kv_heads();
  for_rows(item, step.count, [&](int t) {
    const float* query = row(*qkv, t);
    const float* key = query + heads * dim;
    const float* value = key + kv_heads * dim;
    for (int h = 0; h < heads; ++h) {
      turn(step, t, query + h * dim, norms.query, row(*out, t) + h * dim);
    }
    for (int h = 0; h < kv_heads; ++h) {
      turn(step, t, key + h * dim, norms.key, scratch);
      write_position(*kernels, step, *cache, layer, t, h, scratch, value + h * dim);
    }
  });
}

// Query heads share the keys they read, unless that leaves threads without work: keys cost more to
// load and convert than to multiply.
int AttentionOp::head_split(const Step& step) const {
  const int pairs = static_cast<int>(step.ranges.size()) * cache->kv_heads();
  return pairs < step.threads ? heads / cache->kv_heads() : 1;
}

int AttentionOp::items(const Step& step) const {
  return static_cast<int>(step.ranges.size()) * cache->kv_heads() * head_split(step);
}

void AttentionOp::run(const Step& step, int item, float* scratch) const {
  const int kv_heads = cache->kv_heads(), group = heads / kv_heads, split = head_split(step);
  const int pair = item / split, count = group / split;
  const int first = pair % kv_heads * group + item % split * count;
  attend(step, step.ranges[pair / kv_heads], pair % kv_heads, first, first + count, scratch);
}

void AttentionOp::attend(const Step& step, const TokenRange& range, int kv_head, int head_begin,
                         int head_end, float* scratch) const {
  const int dim = cache->head_dim();
  AttentionArgs args{};
  args.blocks = step.table(range.sequence);
  args.cache = cache->head(layer, 0, kv_head);
  args.block_stride = cache->block_stride();
  args.format = cache->format();
  args.head_dim = dim;
  args.padded_dim = cache->padded_dim();
  args.scale = scale;
  args.cap = cap;
  args.scores = scratch;
  args.score_stride = score_stride;
  const int whole = step.positions[step.starts[range.sequence + 1] - 1] + 1;
  for (int t = range.begin; t < range.end; ++t) {
    for (int h = head_begin; h < head_end; ++h) {
      args.query[args.queries] = row(*query, t) + h * dim;
      args.out[args.queries] = row(*out, t) + h * dim;
      const int length = causal ? step.positions[t] + 1 : whole;
      args.length[args.queries] = length;
      args.first[args.queries] = window > 0 ? std::max(0, length - window) : 0;
      const bool last = t + 1 == range.end && h + 1 == head_end;
      if (++args.queries == kQueryTile || last) {
        kernels->attention(args);
        args.queries = 0;
      }
    }
  }
}

int SelectOp::items(const Step& step) const { return row_items(step.selected); }

void SelectOp::run(const Step& step, int item, float*) const {
  for_rows(item, step.selected, [&](int i) {
    std::memcpy(row(*out, i), row(*in, step.logit_rows[i]), sizeof(float) * in->width);
  });
}

}  // namespace hasten
