// A small pool of threads that run one function together, with barriers between its phases.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace hasten {

// All threads of a team meet here. Spins for a while, then sleeps in the kernel: another busy
// process on the same core would otherwise stall the team for whole time slices.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  void wait();

 private:
  const int members_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> generation_{0};
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  // Runs work(thread) on every thread, the caller being thread 0, and returns when all are done.
  // `work` must not throw.
  void run(const std::function<void(int)>& work);
  Barrier& barrier() { return barrier_; }

 private:
  void serve(int thread);

  const int threads_;
  Barrier barrier_;
  Barrier done_;
  const std::function<void(int)>* work_ = nullptr;
  alignas(64) std::atomic<unsigned> job_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace hasten
