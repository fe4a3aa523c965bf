// Threads that share the parts of a job.

#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

// Hands the parts of a job to whoever is free: on a machine that others use too, a thread that was put aside holds up
// one part, not half of the job. `ticket` is (job number, next part); only who moves it may run that part.
class ThreadPool {
  public:
    explicit ThreadPool(int num_threads) {
        for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { work(i); });
    }

    ~ThreadPool() {
        stop_.store(true);
        ticket_.fetch_add(uint64_t(1) << 32);
        ticket_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return int(threads_.size()) + 1; }

    template <class F> void run(int count, const F& part) {
        if (count <= 0) return;
        if (count == 1 || threads_.empty()) {
            for (int i = 0; i < count; ++i) part(i, 0);
            return;
        }
        const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        ticket_.store(job << 32 | CLOSED, std::memory_order_relaxed);  // nobody takes a part while the job is described
        std::atomic_thread_fence(std::memory_order_seq_cst);
        call_.store([](const void* f, int i, int thread) { (*static_cast<const F*>(f))(i, thread); },
                    std::memory_order_relaxed);
        context_.store(&part, std::memory_order_relaxed);
        count_.store(uint32_t(count), std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(job << 32, std::memory_order_release);
        ticket_.notify_all();
        take_parts(0);
        for (int spins = 0; done_.load(std::memory_order_acquire) != uint32_t(count);) {
            _mm_pause();
            if (++spins > 4000) std::this_thread::yield();
        }
    }

  private:
    static constexpr uint32_t CLOSED = 0xffffffff;

    void take_parts(int thread) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        while (true) {
            const auto call = call_.load(std::memory_order_relaxed);
            const void* const context = context_.load(std::memory_order_relaxed);
            const uint32_t part = uint32_t(ticket);
            if (part == CLOSED || part >= count_.load(std::memory_order_relaxed)) return;
            // Succeeds only if the job is still the one that was read: a part that is not done keeps its job alive.
            if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
                call(context, int(part), thread);
                done_.fetch_add(1, std::memory_order_release);
                ticket = ticket_.load(std::memory_order_acquire);
            }
        }
    }

    void work(int thread) {
        uint64_t seen = 0;
        while (!stop_.load(std::memory_order_relaxed)) {
            uint64_t ticket = ticket_.load(std::memory_order_acquire);
            if (ticket >> 32 == seen >> 32) {
                // Between two parts of a step a moment's spinning is quicker than sleep; between steps it is not.
                for (int spins = 0; spins < SPINS && ticket >> 32 == seen >> 32; ++spins) {
                    _mm_pause();
                    ticket = ticket_.load(std::memory_order_acquire);
                }
                if (ticket >> 32 == seen >> 32) {
                    ticket_.wait(ticket, std::memory_order_acquire);
                    continue;
                }
            }
            if (uint32_t(ticket) == CLOSED) {
                _mm_pause();
                continue;
            }
            seen = ticket;
            take_parts(thread);
        }
    }

    static constexpr int SPINS = 2000;
    std::vector<std::thread> threads_;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<uint32_t> done_{0};
    alignas(64) std::atomic<void (*)(const void*, int, int)> call_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<uint32_t> count_{0};
    std::atomic<bool> stop_{false};
};

}  // namespace
