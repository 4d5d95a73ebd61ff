#include "probes.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "dispatch.h"
#include "matrix.h"

namespace hasten {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Seconds until all threads are through work(thread), their start included.
template <class Work>
double together(int threads, Work work) {
  std::vector<std::thread> team;
  const auto start = Clock::now();
  for (int i = 1; i < threads; ++i) team.emplace_back(work, i);
  work(0);
  for (std::thread& thread : team) thread.join();
  return seconds_since(start);
}

// The best of a few repetitions: others on the machine can only slow one down.
constexpr int kRepetitions = 5;

double rate(int threads, double (*probe)(long)) {
  constexpr long kRounds = 300000;
  double best = 0;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    std::vector<double> done(threads);
    const double seconds = together(threads, [&](int thread) { done[thread] = probe(kRounds); });
    double total = 0;
    for (const double operations : done) total += 2 * operations;
    best = std::max(best, total / seconds);
  }
  return best;
}

// Four independent vectors, so that neither latency nor address arithmetic is the limit.
std::uint64_t read_all(const std::uint8_t* data, std::size_t bytes) {
  using Vector [[gnu::vector_size(16)]] = std::uint64_t;
  Vector sums[4] = {};
  const auto* words = reinterpret_cast<const Vector*>(data);
  for (std::size_t i = 0; i + 4 <= bytes / sizeof(Vector); i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] ^= words[i + j];
  }
  const Vector all = (sums[0] ^ sums[1]) ^ (sums[2] ^ sums[3]);
  return all[0] ^ all[1];
}

}  // namespace

double stream_bandwidth(int threads, int megabytes) {
  const std::size_t share = (static_cast<std::size_t>(megabytes) << 20) / threads / 64 * 64;
  std::vector<Memory> parts;
  for (int i = 0; i < threads; ++i) parts.emplace_back(share);
  together(threads, [&](int thread) { std::memset(parts[thread].data(), thread + 1, share); });
  double best = 0;
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    std::vector<std::uint64_t> keep(threads);
    const double seconds =
        together(threads, [&](int i) { keep[i] = read_all(parts[i].data(), share); });
    best = std::max(best, static_cast<double>(share) * threads / seconds);
    volatile std::uint64_t sink = keep[0];
    (void)sink;
  }
  return best;
}

double int8_rate(int threads, const std::string& isa) {
  return rate(threads, kernels_for(isa)->int8_probe);
}

double fp32_rate(int threads, const std::string& isa) {
  return rate(threads, kernels_for(isa)->fp32_probe);
}

}  // namespace hasten
