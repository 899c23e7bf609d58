// A few threads that do one thing together, and one piece of scratch memory for each of them.
#pragma once

#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace minedraft {

// Grows and is kept: fresh memory would cost page faults in every call.
class Memory {
  public:
    Memory() = default;
    Memory(Memory&& other) noexcept : at_(std::exchange(other.at_, nullptr)), size_(std::exchange(other.size_, 0)) {}
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

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

// Where threads wait for each other.
class Barrier {
  public:
    // Returns when `count` threads are here.
    void wait(int count) {
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (num_here_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            num_here_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            relax();
            if (spins > kSpins) std::this_thread::yield();  // the thread that is missing may want this core
        }
    }

  private:
    static constexpr int kSpins = 1000;  // some 25 microseconds

    alignas(64) std::atomic<int> num_here_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

// One thread of those that run something together.
struct Member {
    int thread, count;
    Barrier* barrier;

    void wait() const {
        if (count > 1) barrier->wait(count);
    }
    // This thread's share of 0..total.
    int64_t begin(int64_t total) const { return total * thread / count; }
    int64_t end(int64_t total) const { return total * (thread + 1) / count; }
};

// The caller is thread 0; the others sleep between calls, after a short watch for the next one. Where the process
// may use just as many cores as there are threads, each has one of its own: two on one core would wait for each
// other, and the system takes milliseconds to part them.
class Pool {
  public:
    explicit Pool(int num_threads) : scratch(1), owner_(getpid()) { resize(num_threads); }

    ~Pool() {
        if (is_forked())  // the threads are in the parent
            for (auto& thread : threads_) thread.detach();
        else
            end_from(1);
    }

    // Go on with so many threads, on the cores that the caller may use now. Call it while no call is going on. Throws
    // where there is no thread or memory; the pool is as it was then.
    void resize(int num_threads) {
        if (is_forked()) return;  // the threads are in the parent
        const int before = size();
        try {
            if (num_threads > before) scratch.resize(num_threads);
            for (int i = before; i < num_threads; ++i)
                threads_.emplace_back([this, i, seen = round_.load()] { serve(i, seen); });
        } catch (...) {
            end_from(before);
            throw;
        }
        end_from(num_threads);
        take_cores();
    }

    // False where another call is going on.
    bool enter() { return !is_busy_.exchange(true, std::memory_order_acquire); }
    void leave() { is_busy_.store(false, std::memory_order_release); }

    int size() const { return static_cast<int>(threads_.size()) + 1; }

    // Calls f(member) on every thread and returns when all are done.
    template <class F>
    void run(F f) {
        if (threads_.empty() || is_forked()) return f(Member{0, 1, &barrier_});
        follow_caller();
        call_ = [](void* context, Member member) { (*static_cast<F*>(context))(member); };
        context_ = &f;
        round_.fetch_add(1);
        if (num_asleep_.load() > 0) {
            { std::lock_guard lock(mutex_); }
            wake_.notify_all();
        }
        const Member caller{0, size(), &barrier_};
        f(caller);
        caller.wait();
    }

    // f(thread, begin, end) over equal parts of 0..count. One part where the whole is small.
    template <class F>
    void split(int64_t count, bool is_small, F f) {
        if (is_small || size() == 1) return f(0, int64_t{0}, count);
        run([&](Member member) {
            const int64_t begin = member.begin(count), end = member.end(count);
            if (begin < end) f(member.thread, begin, end);
        });
    }

    std::vector<Memory> scratch;
    Memory shared, tasks;

  private:
    static constexpr int kSpins = 2000;  // some 50 microseconds: between the calls of one forward

    // End the threads from number `first` on. All take part in one more round, so that the others do not miss it.
    void end_from(int first) {
        if (first < size()) {
            first_to_end_ = first;
            run([](Member) {});
            for (int i = first; i < size(); ++i) threads_[i - 1].join();
            threads_.resize(first - 1);
            first_to_end_ = INT_MAX;
        }
        scratch.resize(first);
    }

    bool is_forked() const { return getpid() != owner_; }

    void take_cores() {
        cores_.clear();
        cpu_set_t allowed;
        if (threads_.empty() || sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) != size()) return;
        for (int core = 0; core < CPU_SETSIZE; ++core)
            if (CPU_ISSET(core, &allowed)) cores_.push_back(core);
        for (int i = 1; i < size(); ++i) move(i);
    }

    // The caller goes where the system puts it; whose core that is takes the one that is left.
    void follow_caller() {
        if (cores_.empty() || cores_[0] == sched_getcpu()) return;
        const int core = sched_getcpu();
        for (int i = 1; i < size(); ++i)
            if (cores_[i] == core) {
                std::swap(cores_[0], cores_[i]);
                move(i);
            }
    }

    void move(int thread) {
        cpu_set_t core;
        CPU_ZERO(&core);
        CPU_SET(cores_[thread], &core);
        pthread_setaffinity_np(threads_[thread - 1].native_handle(), sizeof core, &core);
    }

    // `seen`: how many rounds there were before the thread.
    void serve(int thread, uint64_t seen) {
        for (;;) {
            for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; ++spins) relax();
            if (round_.load(std::memory_order_acquire) == seen) {
                std::unique_lock lock(mutex_);
                num_asleep_.fetch_add(1);
                wake_.wait(lock, [&] { return round_.load() != seen; });
                num_asleep_.fetch_sub(1);
            }
            ++seen;
            const Member member{thread, size(), &barrier_};
            const bool ends = thread >= first_to_end_;
            call_(context_, member);
            member.wait();
            if (ends) return;
        }
    }

    pid_t owner_;
    std::vector<std::thread> threads_;
    std::vector<int> cores_;  // of each thread; empty where they are not kept apart
    std::mutex mutex_;
    std::condition_variable wake_;
    Barrier barrier_;
    alignas(64) std::atomic<uint64_t> round_{0};
    std::atomic<int> num_asleep_{0};
    std::atomic<bool> is_busy_{false};
    int first_to_end_ = INT_MAX;
    void (*call_)(void*, Member) = nullptr;
    void* context_ = nullptr;
};

}  // namespace minedraft
