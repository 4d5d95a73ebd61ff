// A team of threads that works through phases, each a number of independent items.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

namespace hasten {

// A phase is over when its items are done, not when all threads have arrived: a thread that another
// process keeps off its core holds nobody up unless it is inside an item. Threads that come late,
// even into a later run, find their phase over and catch up.
class Team {
 public:
  using Work = std::function<void(int phase, int item, int thread)>;
  // Something short to do while others are at the last items of a phase: rounds 0, 1, ... of each
  // wait, until it returns false. A thread that comes late may call it when its run is over.
  using Idle = std::function<bool(int phase, int round)>;
  static constexpr int kMaxItems = (1 << 21) - 1;
  // What the phases of a run took its caller, in seconds; a run adds to it. Waiting is the part of
  // a phase after the caller's own last item.
  struct Times {
    double* seconds;
    double* waiting;
  };

  Team(int threads, int max_phases, Idle idle);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_; }
  // Calls work for each item of each phase, one phase after the other; returns when all are done.
  // `items` has at most max_phases entries of at most kMaxItems; neither `work` nor `idle` may
  // throw. Only the first `active` threads take part, the caller among them; the others sleep on.
  // `times`, one entry a phase, may be null.
  void run(std::span<const int> items, const Work& work, int active, const Times* times = nullptr);

 private:
  // What is left of a phase, in one word so that a late thread can tell that it belongs to a later
  // run: the run in the upper bits, then the items, then the next item to take.
  struct alignas(64) Phase {
    std::atomic<std::uint64_t> next{0};
    std::atomic<std::uint64_t> done{0};  // the run, and the items that are done
  };

  // What a worker waits for between runs; one each, so that those left out are not woken.
  struct alignas(64) Bell {
    std::atomic<std::uint32_t> rings{0};
  };

  void ring(int thread);
  void serve(int thread);
  void work_through(std::uint32_t run, int thread);
  // The same with a look at the clock before and after each wait.
  void work_by_the_clock(std::uint32_t run, const Times& times);
  void take_items(int phase, std::uint32_t run, int thread);
  bool take(Phase& phase, std::uint32_t run, int& item);
  void finish_item(Phase& phase);
  // Returns once the phase of this run is over.
  void await(int phase, std::uint32_t run);

  const int threads_;
  const Idle idle_;
  std::unique_ptr<Phase[]> phases_;
  int max_phases_;
  std::unique_ptr<Bell[]> bells_;
  std::atomic<int> count_{0};
  std::atomic<const Work*> work_{nullptr};
  std::atomic<std::uint32_t> run_{0};
  alignas(64) std::atomic<std::uint32_t> finished_{0};  // phases so far; what sleepers wait for
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace hasten
