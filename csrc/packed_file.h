// Packed matrices in a file, so that the next start reads what this one has packed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "matrix.h"

namespace hasten {

// Checksums belong to pieces of at most this many bytes; a piece never spans two matrices.
inline constexpr std::size_t kPieceBytes = std::size_t{4} << 20;

using Matrices = std::span<const std::shared_ptr<Matrix>>;

// XXH64 with seed 0 (Collet, xxhash_spec.md of the xxHash repository): 64 bits, not cryptographic.
std::uint64_t xxh64(const std::uint8_t* data, std::size_t bytes);

// Of every piece, matrix by matrix.
std::vector<std::uint64_t> checksums(Matrices matrices, int threads);

// Fills the matrices with the bytes that follow each other in a file from `offset` on. False if the
// file is too short or cannot be read, or a checksum differs; what the matrices hold is then
// undefined. `sums` has one entry a piece.
bool read_matrices(int file, std::uint64_t offset, Matrices matrices,
                   std::span<const std::uint64_t> sums, int threads);

// How many checksums they have.
std::size_t count_pieces(Matrices matrices);

}  // namespace hasten
