#include "moe/base/thread_pool.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "moe/base/check.h"
#include "moe/base/clock.h"
#include "moe/base/cpu_relax.h"

namespace moe {
namespace {

constexpr double kSpinSeconds = 50e-6;  // a step has many short regions; longer than this and the core is better given away

// Spins until done() or the time is up; true when done.
template <class Done>
bool SpinUntil(Done done) {
  const double end = NowSeconds() + kSpinSeconds;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      CpuRelax();
    }
  } while (NowSeconds() < end);
  return done();
}

}  // namespace

struct ThreadPool::Impl {
  // The job in flight. Written by the caller before `epoch` is raised, read by workers after they see it.
  void* fn = nullptr;
  Trampoline call = nullptr;
  int64_t n = 0;
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> epoch{0};
  alignas(64) std::atomic<int> busy{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> in_flight{false};

  std::mutex mutex;  // guards the sleeping and `error`
  std::condition_variable wake, done;
  std::exception_ptr error;  // the first that fn threw
  std::vector<std::thread> threads;

  void Work(int thread) {
    try {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) call(fn, i, thread);
    } catch (...) {
      next.store(n, std::memory_order_relaxed);  // the rest is not begun
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  void Loop(int thread) {
    int64_t seen = 0;
    while (true) {
      const auto ready = [&] { return epoch.load(std::memory_order_acquire) != seen || stop.load(std::memory_order_acquire); };
      if (!SpinUntil(ready)) {
        std::unique_lock lock(mutex);
        wake.wait(lock, ready);
      }
      if (stop.load(std::memory_order_acquire)) return;
      seen = epoch.load(std::memory_order_acquire);
      Work(thread);
      if (busy.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard lock(mutex);
        done.notify_one();
      }
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), impl_(std::make_unique<Impl>()) {
  MOE_CHECK(num_threads >= 1, "num_threads {}", num_threads);
  try {
    for (int t = 1; t < num_threads; ++t) impl_->threads.emplace_back([impl = impl_.get(), t] { impl->Loop(t); });
  } catch (const std::system_error&) {  // the system gives no more: fewer threads compute the same
    num_threads_ = 1 + static_cast<int>(impl_->threads.size());
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stop.store(true, std::memory_order_release);
  }
  impl_->wake.notify_all();
  for (auto& thread : impl_->threads) thread.join();
}

double ThreadPool::WaitSeconds() {
  counts_waits_ = true;
  return wait_s_;
}

void ThreadPool::Dispatch(int64_t n, void* fn, Trampoline call) {
  if (n <= 0) return;
  Impl& p = *impl_;
  MOE_CHECK(!p.in_flight.exchange(true, std::memory_order_acquire), "ParallelFor inside ParallelFor");
  p.fn = fn, p.call = call, p.n = n;
  p.next.store(0, std::memory_order_relaxed);
  if (num_threads_ == 1 || n == 1) {
    p.Work(0);
  } else {
    p.busy.store(num_threads_ - 1, std::memory_order_relaxed);
    {
      std::lock_guard lock(p.mutex);
      p.epoch.fetch_add(1, std::memory_order_release);
    }
    p.wake.notify_all();
    p.Work(0);
    const double own_end = counts_waits_ ? NowSeconds() : 0;
    const auto finished = [&] { return p.busy.load(std::memory_order_acquire) == 0; };
    if (!SpinUntil(finished)) {
      std::unique_lock lock(p.mutex);
      p.done.wait(lock, finished);
    }
    if (counts_waits_) wait_s_ += NowSeconds() - own_end;
  }
  const std::exception_ptr error = std::exchange(p.error, nullptr);
  p.in_flight.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

}  // namespace moe
