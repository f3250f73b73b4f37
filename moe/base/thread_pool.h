#pragma once
// A fixed team of threads, owned by whoever runs a model; there is no global one.

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace moe {

class ThreadPool {
 public:
  // The calling thread is one of them: ThreadPool(1) starts none. Starts fewer where the system refuses.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Seconds that the calling thread has waited for the others at the end of its ParallelFors: what uneven work costs, as no
  // thread is another than the others. Counted from the first call on.
  double WaitSeconds();

  // Calls fn(i, thread) for every i in [0, n), each once, handed out in order by an atomic counter; thread is in
  // [0, num_threads). Returns when all are done. What fn writes must depend on i alone, then results do not depend on the
  // number of threads. Must not be called from inside fn, nor by two threads at once (checked). When fn throws, the indices
  // not yet begun are dropped and the first exception leaves here.
  template <class F>
  void ParallelFor(int64_t n, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    Dispatch(n, const_cast<void*>(static_cast<const void*>(&fn)),
             [](void* f, int64_t i, int thread) { (*static_cast<Fn*>(f))(i, thread); });
  }

 private:
  using Trampoline = void (*)(void*, int64_t, int);
  void Dispatch(int64_t n, void* fn, Trampoline call);
  struct Impl;

  int num_threads_;
  std::unique_ptr<Impl> impl_;
  bool counts_waits_ = false;
  double wait_s_ = 0;
};

}  // namespace moe
