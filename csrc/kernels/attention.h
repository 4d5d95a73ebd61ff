// Attention of a few queries over the KV blocks of one sequence and kv head.
//
// Scores of all positions first, then the softmax, then the weighted values: each query's sums run
// over positions in order, whichever queries share the tile.
#pragma once

#include "kernels.h"
#include "math.h"

namespace {

using hasten::AttentionArgs;
using hasten::kKvBlock;
using hasten::kQueryTile;
using hasten::KvFormat;

// Vectors handled together. Multiply-adds take 4 cycles and two start in each, so 8 sums should be
// under way; 16 registers hold 4 x 2 or 3 x 4 of them.
template <int Q>
constexpr int kStep = Q < 4 && Simd::width <= kKvBlock / 4 ? 4 : 2;

// scores[q][32 positions of the block] = scale * key . query. Meanwhile it asks for as many bytes
// at `next`, which come after: blocks lie apart, so that the hardware does not see them coming.
template <class Element, int Q>
void block_scores(const AttentionArgs& args, const std::uint8_t* block, const std::uint8_t* next,
                  const float* key_scales, int position) {
  using S = Simd;
  constexpr int step = kStep<Q>;
  const auto* keys = reinterpret_cast<const Element*>(block);
  for (int lane = 0; lane < kKvBlock; lane += step * S::width) {
    S::F sum[Q][step];
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < step; ++v) sum[q][v] = S::zero();
    }
    for (int d = 0; d < args.head_dim; ++d) {
      const Element* column = keys + d * kKvBlock + lane;
      __builtin_prefetch(next + (d * kKvBlock + lane) * sizeof(Element));
      S::F value[Q];
      for (int q = 0; q < Q; ++q) value[q] = S::set1(args.query[q][d]);
      for (int v = 0; v < step; ++v) {
        const S::F key = S::load(column + v * S::width);
        for (int q = 0; q < Q; ++q) sum[q][v] = S::fma(key, value[q], sum[q][v]);
      }
    }
    for (int q = 0; q < Q; ++q) {
      float* scores = args.scores + q * args.score_stride + position + lane;
      for (int v = 0; v < step; ++v) {
        S::F score = S::mul(sum[q][v], S::set1(args.scale));
        if (key_scales != nullptr) {
          score = S::mul(score, S::load(key_scales + lane + v * S::width));
        }
        S::store(scores + v * S::width, score);
      }
    }
  }
}

inline const std::uint8_t* block_at(const AttentionArgs& args, int position) {
  return args.cache + args.blocks[position / kKvBlock] * args.block_stride;
}

inline int block_floor(int position) { return position / kKvBlock * kKvBlock; }
inline int block_ceil(int position) { return block_floor(position + kKvBlock - 1); }

inline void fill(float* scores, int begin, int end, float value) {
  for (int i = begin; i < end; ++i) scores[i] = value;
}

// Turns the scores of one query into weights that sum to 1; positions it does not see get 0.
inline void softmax(float* scores, int first, int length) {
  using S = Simd;
  const int begin = block_floor(first), end = block_ceil(length);
  fill(scores, begin, first, scores[length - 1]);
  fill(scores, length, end, scores[length - 1]);
  S::F largest = S::load(scores + begin);
  for (int i = begin; i < end; i += S::width) largest = S::max(largest, S::load(scores + i));
  const S::F top = S::set1(S::reduce_max(largest));
  for (int i = begin; i < end; i += S::width) {
    S::store(scores + i, exp(S::sub(S::load(scores + i), top)));
  }
  fill(scores, begin, first, 0.0f);
  fill(scores, length, end, 0.0f);
  S::F sum = S::zero();
  for (int i = begin; i < end; i += S::width) sum = S::add(sum, S::load(scores + i));
  const S::F inverse = S::set1(1.0f / S::reduce_add(sum));
  for (int i = begin; i < end; i += S::width) {
    S::store(scores + i, S::mul(S::load(scores + i), inverse));
  }
}

// Caps the scores of one query (Gemma 2), before any is compared with another.
inline void cap_scores(float* scores, int first, int length, float cap) {
  using S = Simd;
  for (int i = block_floor(first); i < block_ceil(length); i += S::width) {
    S::store(scores + i, softcap(S::load(scores + i), cap));
  }
}

// Adds one block's values, weighted, to sums[q][padded_dim]; asks for the next block's.
template <class Element, int Q>
void add_values(const AttentionArgs& args, const Element* values, const Element* next,
                const float* weights, int count, float (&sums)[Q][hasten::kMaxHeadDim]) {
  using S = Simd;
  constexpr int step = kStep<Q>;
  for (int d = 0; d < args.padded_dim; d += step * S::width) {
    S::F sum[Q][step];
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < step; ++v) sum[q][v] = S::load(sums[q] + d + v * S::width);
    }
    for (int i = 0; i < count; ++i) {
      __builtin_prefetch(next + i * args.padded_dim + d);
      S::F weight[Q];
      for (int q = 0; q < Q; ++q) weight[q] = S::set1(weights[q * args.score_stride + i]);
      for (int v = 0; v < step; ++v) {
        const S::F value = S::load(values + i * args.padded_dim + d + v * S::width);
        for (int q = 0; q < Q; ++q) sum[q][v] = S::fma(value, weight[q], sum[q][v]);
      }
    }
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < step; ++v) S::store(sums[q] + d + v * S::width, sum[q][v]);
    }
  }
}

// Block by block, so that each is read from memory once; a sum adds its positions in order.
template <class Element, int Q>
void weighted_values(const AttentionArgs& args, const hasten::KvLayout& layout, int earliest,
                     int longest) {
  using S = Simd;
  alignas(64) float sums[Q][hasten::kMaxHeadDim];
  for (int q = 0; q < Q; ++q) fill(sums[q], 0, args.padded_dim, 0.0f);
  for (int first = earliest; first < longest; first += kKvBlock) {
    const std::uint8_t* block = block_at(args, first);
    const std::uint8_t* next =
        first + kKvBlock < longest ? block_at(args, first + kKvBlock) : block;
    float* weights = args.scores + first;
    if constexpr (sizeof(Element) == 1) {
      const auto* scales = reinterpret_cast<const float*>(block + layout.value_scales);
      for (int q = 0; q < Q; ++q) {
        float* weight = weights + q * args.score_stride;
        for (int i = 0; i < kKvBlock; i += S::width) {
          S::store(weight + i, S::mul(S::load(weight + i), S::load(scales + i)));
        }
      }
    }
    const int count = longest - first < kKvBlock ? longest - first : kKvBlock;
    __builtin_prefetch(next + layout.value_scales);
    __builtin_prefetch(next + layout.value_scales + 64);
    add_values<Element, Q>(args, reinterpret_cast<const Element*>(block + layout.values),
                           reinterpret_cast<const Element*>(next + layout.values), weights, count,
                           sums);
  }
  for (int q = 0; q < Q; ++q) {
    for (int d = 0; d < args.head_dim; ++d) args.out[q][d] = sums[q][d];
  }
}

template <class Element, int Q>
void attend(const AttentionArgs& args) {
  const hasten::KvLayout layout = hasten::kv_layout(args.format, args.head_dim, args.padded_dim);
  int earliest = block_floor(args.first[0]), longest = args.length[0];
  for (int q = 1; q < Q; ++q) {
    earliest = args.first[q] < earliest ? block_floor(args.first[q]) : earliest;
    longest = args.length[q] > longest ? args.length[q] : longest;
  }
  for (int position = earliest; position < longest; position += kKvBlock) {
    const std::uint8_t* block = block_at(args, position);
    const std::uint8_t* next = position + kKvBlock < longest
                                   ? block_at(args, position + kKvBlock)
                                   : block_at(args, earliest) + layout.values;
    __builtin_prefetch(next + layout.key_scales);
    __builtin_prefetch(next + layout.key_scales + 64);
    const auto* scales = reinterpret_cast<const float*>(block + layout.key_scales);
    block_scores<Element, Q>(args, block, next, sizeof(Element) == 1 ? scales : nullptr, position);
  }
  for (int q = 0; q < Q; ++q) {
    float* scores = args.scores + q * args.score_stride;
    if (args.cap > 0.0f) cap_scores(scores, args.first[q], args.length[q], args.cap);
    softmax(scores, args.first[q], args.length[q]);
    // A query that sees fewer positions than its neighbours gives the others no weight.
    fill(scores, earliest, block_floor(args.first[q]), 0.0f);
    fill(scores, block_ceil(args.length[q]), longest, 0.0f);
  }
  weighted_values<Element, Q>(args, layout, earliest, longest);
}

template <class Element>
void attend_tile(const AttentionArgs& args) {
  static_assert(kQueryTile == 4);
  switch (args.queries) {
    case 1:
      return attend<Element, 1>(args);
    case 2:
      return attend<Element, 2>(args);
    case 3:
      return attend<Element, 3>(args);
    default:
      return attend<Element, 4>(args);
  }
}

void attention(const AttentionArgs& args) {
  switch (args.format) {
    case KvFormat::f32:
      return attend_tile<float>(args);
    case KvFormat::bf16:
      return attend_tile<std::uint16_t>(args);
    case KvFormat::int8:
      return attend_tile<std::int8_t>(args);
  }
}

}  // namespace
