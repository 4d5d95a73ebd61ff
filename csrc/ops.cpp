#include "ops.h"

#include <algorithm>
#include <cstring>

namespace hasten {
namespace {

constexpr int kRowGrain = 4;         // rows a thread takes at once
constexpr int kTokenBlock = 128;     // tokens whose int8 activations stay in the L2 cache
constexpr int kFloatTokenBlock = 48;
constexpr int kMaxHeadDim = 512;

int rows_of(const Step& step, const Buffer& buffer) {
  return buffer.selected ? step.selected : step.count;
}

float* row(const Buffer& buffer, int index) {
  return buffer.data + static_cast<std::ptrdiff_t>(index) * buffer.width;
}

// Half-split rotation (Su et al. 2021, as in GPT-NeoX and Llama checkpoints of Hugging Face):
// dimension i turns with dimension i + half; dimensions past 2 * half pass through.
void rotate(const Rope& rope, int position, const float* x, int dim, float* y) {
  const float* cosine = rope.cosine.data() + static_cast<std::ptrdiff_t>(position) * rope.half;
  const float* sine = rope.sine.data() + static_cast<std::ptrdiff_t>(position) * rope.half;
  for (int i = 0; i < rope.half; ++i) {
    const float a = x[i], b = x[i + rope.half];
    y[i] = a * cosine[i] - b * sine[i];
    y[i + rope.half] = b * cosine[i] + a * sine[i];
  }
  for (int i = 2 * rope.half; i < dim; ++i) y[i] = x[i];
}

void write_position(const Step& step, const KvCache& cache, int layer, int token, int kv_head,
                    const float* key, const float* value) {
  const int position = step.positions[token];
  const int block = step.table(step.owner[token])[position / kKvBlock];
  cache.write(layer, block, kv_head, position % kKvBlock, key, value);
}

}  // namespace

void EmbedOp::run(const Step& step, const Worker& worker) const {
  worker.share(step.count, kRowGrain, [&](int begin, int end) {
    for (int t = begin; t < end; ++t) matrix->unpack_row(step.tokens[t], row(*out, t));
  });
}

void RmsNormOp::run(const Step& step, const Worker& worker) const {
  worker.share(rows_of(step, *in), kRowGrain, [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      float* y = out->group > 0 ? worker.scratch : row(*out, t);
      kernels->rms_norm(row(*in, t), weight.data(), eps, in->width, y);
      if (out->group > 0) kernels->quantize(y, in->width, out->quantized, t);
    }
  });
}

void QuantizeOp::run(const Step& step, const Worker& worker) const {
  worker.share(rows_of(step, *in), kRowGrain, [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      kernels->quantize(row(*in, t), in->width, out->quantized, t);
    }
  });
}

void LinearOp::run(const Step& step, const Worker& worker) const {
  const int rows = rows_of(step, *out);
  const int panels = matrix->panels();
  const int token_block = in->group > 0 ? kTokenBlock : kFloatTokenBlock;
  const int token_blocks = (rows + token_block - 1) / token_block;
  // A few chunks a thread: enough to even out a stalled one, long enough to stream weights.
  const int chunk = std::max(1, panels / (4 * worker.threads));
  const int chunks = (panels + chunk - 1) / chunk;
  const LinearArgs args{matrix->view(), in->data, in->quantized,
                        bias.empty() ? nullptr : bias.data(), out->data, out->width, epilogue};
  worker.share(chunks * token_blocks, 1, [&](int item, int) {
    const int panel = item / token_blocks * chunk;
    const int token = item % token_blocks * token_block;
    kernels->linear(args, panel, std::min(panel + chunk, panels), token,
                    std::min(token + token_block, rows));
  });
}

void SiluMulOp::run(const Step& step, const Worker& worker) const {
  worker.share(rows_of(step, *out), kRowGrain, [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      kernels->silu_mul(row(*gate, t), row(*up, t), out->width, row(*out, t));
    }
  });
}

void AddOp::run(const Step& step, const Worker& worker) const {
  worker.share(rows_of(step, *out), kRowGrain, [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      kernels->add(row(*a, t), row(*b, t), out->width, row(*out, t));
    }
  });
}

void RopeOp::run(const Step& step, const Worker& worker) const {
  worker.share(step.count, kRowGrain, [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      for (int h = 0; h < heads; ++h) {
        rotate(*rope, step.positions[t], row(*in, t) + h * head_dim, head_dim,
               row(*out, t) + h * head_dim);
      }
    }
  });
}

void KvWriteOp::run(const Step& step, const Worker& worker) const {
  const int dim = cache->head_dim();
  worker.share(step.count, kRowGrain, [&](int begin, int end) {
    for (int t = begin; t < end; ++t) {
      for (int h = 0; h < cache->kv_heads(); ++h) {
        write_position(step, *cache, layer, t, h, row(*key, t) + h * dim, row(*value, t) + h * dim);
      }
    }
  });
}

void RopeKvWriteOp::run(const Step& step, const Worker& worker) const {
  const int dim = cache->head_dim(), kv_heads = cache->kv_heads();
  worker.share(step.count, kRowGrain, [&](int begin, int end) {
    float rotated[kMaxHeadDim];
    for (int t = begin; t < end; ++t) {
      const float* query = row(*qkv, t);
      const float* key = query + heads * dim;
      const float* value = key + kv_heads * dim;
      for (int h = 0; h < heads; ++h) {
        rotate(*rope, step.positions[t], query + h * dim, dim, row(*out, t) + h * dim);
      }
      for (int h = 0; h < kv_heads; ++h) {
        rotate(*rope, step.positions[t], key + h * dim, dim, rotated);
        write_position(step, *cache, layer, t, h, rotated, value + h * dim);
      }
    }
  });
}

void AttentionOp::run(const Step& step, const Worker& worker) const {
  const int kv_heads = cache->kv_heads(), group = heads / kv_heads;
  const int pairs = static_cast<int>(step.ranges.size()) * kv_heads;
  // Query heads share the keys they read, unless that leaves threads without work: keys cost more
  // to load and convert than to multiply.
  const int split = pairs < worker.threads ? group : 1;
  worker.share(pairs * split, 1, [&](int item, int) {
    const int pair = item / split, part = item % split;
    const int first = pair % kv_heads * group + part * (group / split);
    attend(step, step.ranges[pair / kv_heads], pair % kv_heads, first, first + group / split,
           worker.scratch);
  });
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
  args.scores = scratch;
  args.score_stride = score_stride;
  for (int t = range.begin; t < range.end; ++t) {
    for (int h = head_begin; h < head_end; ++h) {
      args.query[args.queries] = row(*query, t) + h * dim;
      args.out[args.queries] = row(*out, t) + h * dim;
      const int length = step.positions[t] + 1;
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

void SelectOp::run(const Step& step, const Worker& worker) const {
  worker.share(step.selected, kRowGrain, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      std::memcpy(row(*out, i), row(*in, step.logit_rows[i]), sizeof(float) * in->width);
    }
  });
}

}  // namespace hasten
