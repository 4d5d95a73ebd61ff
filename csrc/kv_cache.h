// Keys and values of past positions, in blocks of 32 positions that sequences share out by tables.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "matrix.h"

namespace hasten {

class KvCache {
 public:
  KvCache(KvFormat format, int layers, int blocks, int kv_heads, int head_dim);

  KvFormat format() const { return format_; }
  int layers() const { return layers_; }
  int blocks() const { return blocks_; }
  int kv_heads() const { return kv_heads_; }
  int head_dim() const { return head_dim_; }
  int padded_dim() const { return padded_dim_; }
  std::size_t bytes() const { return memory_.bytes(); }

  std::size_t block_stride() const { return kv_heads_ * layout_.bytes; }
  std::uint8_t* head(int layer, int block, int kv_head) const {
    const std::size_t index = static_cast<std::size_t>(layer) * blocks_ + block;
    return memory_.data() + index * block_stride() + kv_head * layout_.bytes;
  }
  // Stores the key and value ([head_dim] each) of one position of a block.
  void write(const Kernels& kernels, int layer, int block, int kv_head, int slot, const float* key,
             const float* value) const;

 private:
  KvFormat format_;
  int layers_, blocks_, kv_heads_, head_dim_, padded_dim_;
  KvLayout layout_;
  Memory memory_;
};

}  // namespace hasten
