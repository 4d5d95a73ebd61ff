#include "packed_file.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <thread>

namespace hasten {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87u, kPrime2 = 0xC2B2AE3D27D4EB4Fu,
                        kPrime3 = 0x165667B19E3779F9u, kPrime4 = 0x85EBCA77C2B2AE63u,
                        kPrime5 = 0x27D4EB2F165667C5u;

template <class T>
std::uint64_t load(const std::uint8_t* place) {
  T value;
  std::memcpy(&value, place, sizeof(T));
  return value;
}

std::uint64_t mix(std::uint64_t sum, std::uint64_t word) {
  return std::rotl(sum + word * kPrime2, 31) * kPrime1;
}

std::uint64_t merge(std::uint64_t sum, std::uint64_t lane) {
  return (sum ^ mix(0, lane)) * kPrime1 + kPrime4;
}

struct Piece {
  std::uint8_t* data;
  std::size_t bytes;
  std::uint64_t offset;  // from the first matrix
};

std::vector<Piece> pieces_of(Matrices matrices) {
  std::vector<Piece> pieces;
  std::uint64_t offset = 0;
  for (const auto& matrix : matrices) {
    for (std::size_t at = 0; at < matrix->bytes(); at += kPieceBytes) {
      const std::size_t bytes = std::min(kPieceBytes, matrix->bytes() - at);
      pieces.push_back({matrix->data() + at, bytes, offset});
      offset += bytes;
    }
  }
  return pieces;
}

// Calls work(index) for each index below `count`, on several threads.
template <class Work>
void for_each(std::size_t count, int threads, Work work) {
  std::atomic<std::size_t> next{0};
  const auto serve = [&] {
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(i);
  };
  std::vector<std::thread> team;
  const auto most = static_cast<int>(std::min<std::size_t>(threads, count));
  for (int i = 1; i < most; ++i) team.emplace_back(serve);
  serve();
  for (std::thread& thread : team) thread.join();
}

bool read_piece(int file, std::uint64_t offset, const Piece& piece) {
  for (std::size_t at = 0; at < piece.bytes;) {
    const ssize_t got = pread(file, piece.data + at, piece.bytes - at,
                              static_cast<off_t>(offset + piece.offset + at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += static_cast<std::size_t>(got);
  }
  return true;
}

}  // namespace

std::uint64_t xxh64(const std::uint8_t* data, std::size_t bytes) {
  const std::uint8_t* const end = data + bytes;
  std::uint64_t sum = kPrime5;
  if (bytes >= 32) {
    std::uint64_t lanes[4] = {kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
    for (; end - data >= 32; data += 32) {
      for (int i = 0; i < 4; ++i) lanes[i] = mix(lanes[i], load<std::uint64_t>(data + 8 * i));
    }
    sum = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) +
          std::rotl(lanes[3], 18);
    for (const std::uint64_t lane : lanes) sum = merge(sum, lane);
  }
  sum += bytes;
  for (; end - data >= 8; data += 8) {
    sum = std::rotl(sum ^ mix(0, load<std::uint64_t>(data)), 27) * kPrime1 + kPrime4;
  }
  for (; end - data >= 4; data += 4) {
    sum = std::rotl(sum ^ load<std::uint32_t>(data) * kPrime1, 23) * kPrime2 + kPrime3;
  }
  for (; data < end; ++data) sum = std::rotl(sum ^ *data * kPrime5, 11) * kPrime1;
  sum = (sum ^ sum >> 33) * kPrime2;
  sum = (sum ^ sum >> 29) * kPrime3;
  return sum ^ sum >> 32;
}

std::size_t count_pieces(Matrices matrices) { return pieces_of(matrices).size(); }

std::vector<std::uint64_t> checksums(Matrices matrices, int threads) {
  const std::vector<Piece> pieces = pieces_of(matrices);
  std::vector<std::uint64_t> sums(pieces.size());
  for_each(pieces.size(), threads,
           [&](std::size_t i) { sums[i] = xxh64(pieces[i].data, pieces[i].bytes); });
  return sums;
}

bool read_matrices(int file, std::uint64_t offset, Matrices matrices,
                   std::span<const std::uint64_t> sums, int threads) {
  const std::vector<Piece> pieces = pieces_of(matrices);
  std::atomic<bool> intact{sums.size() == pieces.size()};
  for_each(intact ? pieces.size() : 0, threads, [&](std::size_t i) {
    if (!intact.load(std::memory_order_relaxed)) return;
    const bool same =
        read_piece(file, offset, pieces[i]) && xxh64(pieces[i].data, pieces[i].bytes) == sums[i];
    if (!same) intact.store(false, std::memory_order_relaxed);
  });
  return intact;
}

}  // namespace hasten
