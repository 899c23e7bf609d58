// A few threads that wait for work, and one piece of scratch memory for each of them.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace minedraft {

// Grows and is kept: fresh memory would cost page faults in every call.
class Memory {
  public:
    ~Memory() { std::free(at_); }

    // 64-byte aligned; null if there is none.
    uint8_t* get(size_t bytes) {
        if (bytes > size_ || !at_) {
            std::free(at_);
            size_ = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            at_ = static_cast<uint8_t*>(std::aligned_alloc(64, size_));
            if (!at_) size_ = 0;
        }
        return at_;
    }

  private:
    uint8_t* at_ = nullptr;
    size_t size_ = 0;
};

// The caller is thread 0; the others sleep between calls, after a short watch for the next one.
class Pool {
  public:
    explicit Pool(int num_threads) : scratch(num_threads), owner_(getpid()) {
        try {
            for (int i = 1; i < num_threads; ++i) threads_.emplace_back([this, i] { serve(i); });
        } catch (...) {
            close();
            throw;
        }
    }

    ~Pool() { close(); }

    // False where another call is going on.
    bool enter() { return !is_busy_.exchange(true, std::memory_order_acquire); }
    void leave() { is_busy_.store(false, std::memory_order_release); }

    int size() const { return static_cast<int>(scratch.size()); }

    // Calls f(thread) on every thread and returns when all are done.
    template <class F>
    void run(F f) {
        if (threads_.empty() || is_forked()) {
            for (int i = 0; i < size(); ++i) f(i);
            return;
        }
        call_ = [](void* context, int thread) { (*static_cast<F*>(context))(thread); };
        context_ = &f;
        num_left_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
        {
            std::lock_guard lock(mutex_);
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        f(0);
        for (int spins = 0; num_left_.load(std::memory_order_acquire) > 0; ++spins) pause(spins);
    }

    // f(thread, begin, end) over equal parts of 0..count. One part where the whole is small.
    template <class F>
    void split(int64_t count, bool is_small, F f) {
        if (is_small || size() == 1) return f(0, int64_t{0}, count);
        run([&](int i) {
            const int64_t begin = count * i / size(), end = count * (i + 1) / size();
            if (begin < end) f(i, begin, end);
        });
    }

    std::vector<Memory> scratch;
    Memory shared;

  private:
    static constexpr int kSpins = 4000;  // some 50 microseconds: between the calls of one forward

    void close() {
        if (is_forked()) {  // the threads are in the parent
            for (auto& thread : threads_) thread.detach();
            return;
        }
        {
            std::lock_guard lock(mutex_);
            is_closing_ = true;
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    bool is_forked() const { return getpid() != owner_; }

    static void pause(int spins) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
        if (spins > kSpins) std::this_thread::yield();  // the other thread may want this core
    }

    void serve(int thread) {
        for (uint64_t seen = 0;;) {
            for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; ++spins) pause(0);
            if (round_.load(std::memory_order_acquire) == seen) {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
            }
            seen = round_.load(std::memory_order_acquire);
            if (is_closing_) return;
            call_(context_, thread);
            num_left_.fetch_sub(1, std::memory_order_release);
        }
    }

    pid_t owner_;
    std::vector<std::thread> threads_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int> num_left_{0};
    std::atomic<bool> is_busy_{false};
    bool is_closing_ = false;
    void (*call_)(void*, int) = nullptr;
    void* context_ = nullptr;
};

}  // namespace minedraft
