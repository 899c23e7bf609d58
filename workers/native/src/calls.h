// Calls of kernels that the threads of a pool make one after the other, each its part of every call.
//
// A thread has the same rows in every kernel that goes row by row, so it need not wait for the others between
// two of them. Everything else begins when all threads are done with what was before it.
#pragma once

#include <atomic>
#include <new>
#include <variant>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace minedraft {

using Call = std::variant<Linear, Norm, Rope, SiluMul, Store, Attention>;

// How far the calls of this library have got, ever: whoever watches a long forward sees that it still moves.
inline std::atomic<int64_t> num_beats{0};
inline void beat() { num_beats.fetch_add(1, std::memory_order_relaxed); }

// What differs from forward to forward.
struct Batch {
    int64_t rows;
    const int64_t* slots;
    const Span* spans;
    int64_t num_spans;
    const int32_t* blocks;
};

// Recorded calls; each has memory for `max_rows` rows.
struct Program {
    std::vector<Call> calls;
    int64_t max_rows = INT64_MAX;
};

// Work below this many numbers is done by the caller alone: waking another thread costs microseconds.
constexpr int64_t kSmall = 1 << 15;
// Queries of one attention task: their sums stay in the second-level cache.
constexpr int64_t kTaskQueries = 96;

template <class Args>
void set_batch(Args& a, const Batch& batch) {
    a.rows = batch.rows;
    if constexpr (std::is_same_v<Args, Store>) a.slots = batch.slots;
    if constexpr (std::is_same_v<Args, Attention>) {
        a.spans = batch.spans;
        a.num_spans = batch.num_spans;
        a.blocks = batch.blocks;
    }
}

inline bool is_small(const Linear& a) { return a.in * a.out < kSmall; }
inline bool is_small(const Norm& a) { return a.rows * a.size < kSmall; }
inline bool is_small(const Rope& a) { return a.rows * a.heads * a.dim < kSmall; }
inline bool is_small(const SiluMul& a) { return a.rows * a.size < kSmall; }
inline bool is_small(const Store& a) { return a.rows * a.cache.heads * a.cache.key_dim < kSmall; }
inline bool is_small(const Attention&) { return false; }

template <class Args>
constexpr bool kByRows = !std::is_same_v<Args, Linear> && !std::is_same_v<Args, Attention>;

inline int64_t rows_of_task(const Attention& a) { return a.group < kTaskQueries ? kTaskQueries / a.group : 1; }

// The tasks of one attention call in their order; asked for with rising numbers.
class Tasks {
  public:
    explicit Tasks(const Attention& a) : a_(a), task_rows_(rows_of_task(a)) {}

    // False where there are fewer.
    bool find(int64_t number, Task& task) {
        for (; span_ < a_.num_spans && number >= first_ + count(); ++span_) first_ += count();
        if (span_ >= a_.num_spans) return false;
        const int64_t row = (number - first_) / a_.cache.heads * task_rows_, left = a_.spans[span_].rows - row;
        task = {span_, row, left < task_rows_ ? left : task_rows_, (number - first_) % a_.cache.heads};
        return true;
    }

  private:
    const Attention& a_;
    int64_t task_rows_, span_ = 0, first_ = 0;

    int64_t count() const { return (a_.spans[span_].rows + task_rows_ - 1) / task_rows_ * a_.cache.heads; }
};

// Makes calls on the threads of one pool.
class Caller {
  public:
    Caller(const Kernels& kernels, Pool& pool) : kernels_(kernels), pool_(pool) {}

    // False where there is no memory for scratch; then nothing was computed.
    bool make(Call* calls, size_t count) {
        if (!reserve(calls, count)) return false;
        const auto make_parts = [&](Member member) { make_parts_of(member, calls, count); };
        if (count == 1 && std::visit([](const auto& a) { return is_small(a); }, calls[0]))
            make_parts(Member{0, 1, nullptr});
        else
            pool_.run(make_parts);
        return true;
    }

  private:
    const Kernels& kernels_;
    Pool& pool_;
    size_t scratch_bytes_ = 0;
    std::atomic<int64_t> next_task_[2] = {};

    bool reserve(Call* calls, size_t count) {
        size_t packed_x_bytes = 0;
        for (size_t i = 0; i < count; ++i) {
            size_t x_bytes = 0, scratch_bytes = 0;
            if (const auto* linear = std::get_if<Linear>(&calls[i])) {
                x_bytes = kernels_.packed_x_bytes(*linear);
                scratch_bytes = kernels_.linear_scratch_bytes(*linear);
            }
            if (const auto* attention = std::get_if<Attention>(&calls[i])) scratch_bytes = bytes_for(*attention);
            if (x_bytes > packed_x_bytes) packed_x_bytes = x_bytes;
            if (scratch_bytes > scratch_bytes_) scratch_bytes_ = scratch_bytes;
        }
        uint8_t* packed_x = pool_.shared.get(packed_x_bytes);
        if (!packed_x) return false;
        for (size_t i = 0; i < count; ++i)
            if (auto* linear = std::get_if<Linear>(&calls[i])) linear->packed_x = packed_x;
        for (auto& memory : pool_.scratch)
            if (scratch_bytes_ && !memory.get(scratch_bytes_)) return false;
        return true;
    }

    size_t bytes_for(const Attention& a) const {
        int64_t max_tokens = 0;
        for (int64_t i = 0; i < a.num_spans; ++i) {
            const int64_t tokens = a.spans[i].start + a.spans[i].rows;
            if (tokens > max_tokens) max_tokens = tokens;
        }
        return kernels_.attention_scratch_bytes(a, rows_of_task(a), max_tokens);
    }

    void make_parts_of(Member member, const Call* calls, size_t count) {
        bool is_by_rows = false;
        int64_t num_attentions = 0;
        for (size_t i = 0; i < count; ++i)
            std::visit(
                [&](const auto& a) {
                    using Args = std::decay_t<decltype(a)>;
                    if (i && !(is_by_rows && kByRows<Args>)) member.wait();
                    if (member.thread == 0) beat();
                    is_by_rows = kByRows<Args>;
                    if constexpr (std::is_same_v<Args, Attention>)
                        attend(member, a, num_attentions++);
                    else
                        make_part(member, a);
                },
                calls[i]);
    }

    uint8_t* scratch_of(Member member) { return pool_.scratch[member.thread].get(scratch_bytes_); }

    void make_part(Member member, const Linear& a) {
        kernels_.pack_x(a, member.thread, member.count);
        member.wait();
        const int64_t num_panels = round_up(a.out, kPanel) / kPanel;
        kernels_.linear(a, member.begin(num_panels), member.end(num_panels), scratch_of(member));
    }
    void make_part(Member member, const Norm& a) { kernels_.norm(a, member.begin(a.rows), member.end(a.rows)); }
    void make_part(Member member, const Rope& a) { kernels_.rope(a, member.begin(a.rows), member.end(a.rows)); }
    void make_part(Member member, const SiluMul& a) { kernels_.silu_mul(a, member.begin(a.rows), member.end(a.rows)); }
    void make_part(Member member, const Store& a) { kernels_.store(a, member.begin(a.rows), member.end(a.rows)); }

    // Tasks differ in size, so each thread takes the next one; which thread it is does not show in the result.
    void attend(Member member, const Attention& a, int64_t number_of_call) {
        auto& next = next_task_[number_of_call % 2];
        // All are done with the attention before this one, and none begins the next one before this one is done.
        if (member.thread == 0) next_task_[(number_of_call + 1) % 2].store(0, std::memory_order_relaxed);
        uint8_t* scratch = scratch_of(member);
        Tasks tasks(a);
        for (Task task, after;;) {
            const int64_t number = next.fetch_add(1, std::memory_order_relaxed);
            if (!tasks.find(number, task)) return;
            beat();
            const bool has_more = Tasks(tasks).find(number + member.count, after);
            kernels_.attention(a, task, has_more ? &after : nullptr, scratch);
        }
    }
};

}  // namespace minedraft
