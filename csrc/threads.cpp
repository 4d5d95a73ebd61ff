#include "threads.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace hasten {
namespace {

constexpr int kItemBits = 21;
constexpr int kRunShift = 2 * kItemBits;
constexpr std::uint64_t kItemMask = (std::uint64_t{1} << kItemBits) - 1;
constexpr std::uint32_t kRunMask = (std::uint32_t{1} << (64 - kRunShift)) - 1;

std::uint64_t label(std::uint32_t run) { return static_cast<std::uint64_t>(run) << kRunShift; }
std::uint32_t run_of(std::uint64_t word) { return static_cast<std::uint32_t>(word >> kRunShift); }
std::uint64_t items_of(std::uint64_t word) { return word >> kItemBits & kItemMask; }

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins before a thread sleeps in the kernel. Within a run the others are nearly done, or off their
// cores, and then ours should go to them; between runs the caller samples a token (about 100 us).
constexpr int kPhaseSpins = 1000;
constexpr int kRunSpins = 8000;

}  // namespace

Team::Team(int threads, int max_phases, Idle idle)
    : threads_(threads),
      idle_(std::move(idle)),
      phases_(std::make_unique<Phase[]>(max_phases)),
      max_phases_(max_phases),
      bells_(std::make_unique<Bell[]>(threads)) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
}

Team::~Team() {
  stop_.store(true);
  for (int i = 1; i < threads_; ++i) ring(i);
  finished_.fetch_add(1, std::memory_order_acq_rel);
  finished_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::ring(int thread) {
  bells_[thread].rings.fetch_add(1, std::memory_order_acq_rel);
  bells_[thread].rings.notify_one();
}

void Team::run(std::span<const int> items, const Work& work, int active, const Times* times) {
  const std::uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  work_.store(&work, std::memory_order_relaxed);
  count_.store(static_cast<int>(items.size()), std::memory_order_relaxed);
  for (std::size_t i = 0; i < items.size(); ++i) {
    const std::uint64_t fresh = label(run) | static_cast<std::uint64_t>(items[i]) << kItemBits;
    phases_[i].done.store(fresh, std::memory_order_relaxed);
    phases_[i].next.store(fresh, std::memory_order_release);
  }
  run_.store(run, std::memory_order_release);
  for (int i = 1; i < std::min(active, threads_); ++i) ring(i);
  if (times == nullptr) {
    work_through(run, 0);
  } else {
    work_by_the_clock(run, *times);
  }
}

void Team::serve(int thread) {
  const std::atomic<std::uint32_t>& rings = bells_[thread].rings;
  std::uint32_t heard = 0;
  for (;;) {
    std::uint32_t now = rings.load(std::memory_order_acquire);
    for (int i = 0; i < kRunSpins && now == heard; ++i) {
      pause();
      now = rings.load(std::memory_order_acquire);
    }
    while (now == heard) {
      rings.wait(heard);
      now = rings.load(std::memory_order_acquire);
    }
    heard = now;
    if (stop_.load()) return;
    work_through(run_.load(std::memory_order_acquire), thread);
  }
}

void Team::work_through(std::uint32_t run, int thread) {
  const int count = count_.load(std::memory_order_relaxed);
  for (int i = 0; i < count; ++i) {
    take_items(i, run, thread);
    await(i, run);
  }
}

void Team::work_by_the_clock(std::uint32_t run, const Times& times) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::duration time) {
    return std::chrono::duration<double>(time).count();
  };
  const int count = count_.load(std::memory_order_relaxed);
  auto begin = Clock::now();
  for (int i = 0; i < count; ++i) {
    take_items(i, run, 0);
    const auto idle = Clock::now();
    await(i, run);
    const auto end = Clock::now();
    times.seconds[i] += seconds(end - begin);
    times.waiting[i] += seconds(end - idle);
    begin = end;
  }
}

void Team::take_items(int index, std::uint32_t run, int thread) {
  Phase& phase = phases_[index];
  int item;
  while (take(phase, run, item)) {
    // The item taken keeps the run alive, and with it the work.
    (*work_.load(std::memory_order_relaxed))(index, item, thread);
    finish_item(phase);
  }
}

bool Team::take(Phase& phase, std::uint32_t run, int& item) {
  std::uint64_t word = phase.next.load(std::memory_order_acquire);
  for (;;) {
    const std::uint64_t index = word & kItemMask;
    if (run_of(word) != (run & kRunMask) || index >= items_of(word)) return false;
    if (phase.next.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
      item = static_cast<int>(index);
      return true;
    }
  }
}

void Team::finish_item(Phase& phase) {
  const std::uint64_t word = phase.done.fetch_add(1, std::memory_order_acq_rel) + 1;
  if ((word & kItemMask) == items_of(word)) {
    finished_.fetch_add(1, std::memory_order_acq_rel);
    finished_.notify_all();
  }
}

void Team::await(int index, std::uint32_t run) {
  const Phase& phase = phases_[index];
  bool idle = true;
  for (int spins = 0;; ++spins) {
    const std::uint32_t finished = finished_.load(std::memory_order_acquire);
    const std::uint64_t word = phase.done.load(std::memory_order_acquire);
    if (run_of(word) != (run & kRunMask) || (word & kItemMask) == items_of(word)) return;
    if (stop_.load(std::memory_order_relaxed)) return;
    if (idle) {
      idle = idle_(index, spins);
    } else if (spins < kPhaseSpins) {
      pause();
    } else {
      finished_.wait(finished);
    }
  }
}

}  // namespace hasten
