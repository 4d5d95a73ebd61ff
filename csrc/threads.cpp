#include "threads.h"

namespace hasten {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Long enough for the phases of a step and for the sampling between two steps (about 100 us).
constexpr int kSpins = 4000;

// Returns once `value` no longer equals `old`.
void wait_while(const std::atomic<unsigned>& value, unsigned old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old);
}

}  // namespace

void Barrier::wait() {
  const unsigned generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_acq_rel);
    generation_.notify_all();
  } else {
    wait_while(generation_, generation);
  }
}

ThreadPool::ThreadPool(int threads) : threads_(threads), barrier_(threads), done_(threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  job_.fetch_add(1, std::memory_order_acq_rel);
  job_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(const std::function<void(int)>& work) {
  work_ = &work;
  job_.fetch_add(1, std::memory_order_acq_rel);
  job_.notify_all();
  work(0);
  done_.wait();
}

void ThreadPool::serve(int thread) {
  unsigned job = 0;
  for (;;) {
    wait_while(job_, job);
    // Jobs come one at a time: the next starts after done_, which this thread has yet to pass.
    ++job;
    if (stop_.load()) return;
    (*work_)(thread);
    done_.wait();
  }
}

}  // namespace hasten
