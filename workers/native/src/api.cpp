// The entry points: plain C, called through ctypes. Python has checked every pointer and size.
//
// Those that compute return 0, kBusy (another thread is in a call with the same pool) or kNoMemory.
#include <atomic>
#include <cstring>

#include "choice/request.h"
#include "cpu.h"
#include "kernels.h"
#include "pool.h"

#ifndef MINEDRAFT_KEY
#define MINEDRAFT_KEY "none"
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace minedraft;

namespace {

enum Status : int { kOk = 0, kBusy = 1, kNoMemory = 2 };

// Work below this many numbers is done by the caller alone: waking another thread costs microseconds.
constexpr int64_t kSmall = 1 << 15;
// Queries of one attention task: their sums stay in the second-level cache.
constexpr int64_t kTaskQueries = 96;

struct Handle {
    const Kernels* kernels;
    Pool pool;
};

// Null where the compiler could not build one.
const Kernels* const kTables[] = {&kernels_scalar, &kernels_avx2, &kernels_avx512, &kernels_avx512_bf16};

template <class F>
int exclusively(void* handle, F f) {
    auto& h = *static_cast<Handle*>(handle);
    if (!h.pool.enter()) return kBusy;
    const int status = f(*h.kernels, h.pool);
    h.pool.leave();
    return status;
}

// A kernel whose rows are independent: split over them.
template <class Args>
int by_rows(void* handle, const Args& args, int64_t numbers, void (*Kernels::*kernel)(const Args&, int64_t, int64_t)) {
    return exclusively(handle, [&](const Kernels& kernels, Pool& pool) {
        pool.split(args.rows, numbers < kSmall,
                   [&](int, int64_t begin, int64_t end) { (kernels.*kernel)(args, begin, end); });
        return kOk;
    });
}

// Weights of 32 columns after each other; `unit` is the bytes of one input (or pair of inputs) of a column.
void pack_panel(const uint8_t* weight, int64_t width, int64_t inputs, int64_t out, int64_t in, int64_t panel,
                uint8_t* packed) {
    const int64_t steps = (in + inputs - 1) / inputs, unit = width * inputs;
    for (int64_t column = 0; column < kPanel; ++column) {
        uint8_t* to = packed + (panel * steps * kPanel + column) * unit;
        const int64_t row = panel * kPanel + column;
        for (int64_t step = 0; step < steps; ++step, to += kPanel * unit) {
            const int64_t left = row < out ? (in - step * inputs) * width : 0, size = left < unit ? left : unit;
            std::memset(to, 0, unit);
            std::memcpy(to, weight + (row * in + step * inputs) * width, size);
        }
    }
}

}  // namespace

EXPORT const char* minedraft_key() { return MINEDRAFT_KEY; }

// 0: this CPU lacks it; 1: the library was built without it; 2: it can be used.
EXPORT int minedraft_has(int isa) {
    if (isa < kScalar || isa > kAvx512Bf16 || !has(static_cast<Isa>(isa))) return 0;
    return kTables[isa] ? 2 : 1;
}

// Null if there is no memory or thread for it. `isa` is one that can be used.
EXPORT void* minedraft_open(int isa, int num_threads) {
    try {
        return new Handle{kTables[isa], Pool(num_threads)};
    } catch (...) {
        return nullptr;
    }
}
EXPORT void minedraft_close(void* handle) { delete static_cast<Handle*>(handle); }

EXPORT int64_t minedraft_packed_bytes(int64_t out, int64_t in, int dtype) {
    return round_up(out, kPanel) * round_up(in, inputs_per_step(dtype)) * bytes_of(dtype);
}

EXPORT void minedraft_pack(const void* weight, int dtype, int64_t out, int64_t in, void* packed) {
    for (int64_t panel = 0; panel < round_up(out, kPanel) / kPanel; ++panel)
        pack_panel(static_cast<const uint8_t*>(weight), bytes_of(dtype), inputs_per_step(dtype), out, in, panel,
                   static_cast<uint8_t*>(packed));
}

// Row `ids[i]` of the weight, as it was before packing, to row i of `y`, which has the weight's dtype.
EXPORT void minedraft_rows(const void* packed, int dtype, int64_t in, const int64_t* ids, int64_t num_ids, void* y) {
    const int64_t inputs = inputs_per_step(dtype), width = bytes_of(dtype), unit = width * inputs;
    const int64_t steps = (in + inputs - 1) / inputs;
    for (int64_t i = 0; i < num_ids; ++i) {
        const auto* from =
            static_cast<const uint8_t*>(packed) + (ids[i] / kPanel * steps * kPanel + ids[i] % kPanel) * unit;
        auto* to = static_cast<uint8_t*>(y) + i * in * width;
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t left = (in - step * inputs) * width;
            std::memcpy(to + step * unit, from + step * kPanel * unit, left < unit ? left : unit);
        }
    }
}

EXPORT int minedraft_linear(void* handle, const void* x, int64_t x_stride, const void* weight, const float* bias,
                            void* y, int64_t y_stride, int64_t rows, int64_t in, int64_t out, int x_dtype,
                            int weight_dtype, int y_dtype) {
    return exclusively(handle, [&](const Kernels& kernels, Pool& pool) -> int {
        Linear args{x,  x_stride, static_cast<const uint8_t*>(weight), bias, y, y_stride, rows, in, out, x_dtype,
                    weight_dtype, y_dtype, nullptr};
        args.packed_x = pool.shared.get(kernels.packed_x_bytes(args));
        if (!args.packed_x) return kNoMemory;
        kernels.pack_x(args);
        pool.split(round_up(out, kPanel) / kPanel, in * out < kSmall,
                   [&](int, int64_t begin, int64_t end) { kernels.linear(args, begin, end); });
        return kOk;
    });
}

EXPORT int minedraft_norm(void* handle, const void* x, int64_t x_stride, void* residual, int64_t residual_stride,
                          const void* weight, void* out, int64_t out_stride, int64_t rows, int64_t size, float eps,
                          int dtype) {
    const Norm args{x, x_stride, residual, residual_stride, weight, out, out_stride, rows, size, eps, dtype};
    return by_rows(handle, args, rows * size, &Kernels::norm);
}

EXPORT int minedraft_rope(void* handle, void* x, int64_t x_stride, const void* cos, const void* sin,
                          int64_t angle_stride, int64_t rows, int64_t heads, int64_t dim, int dtype) {
    const Rope args{x, x_stride, cos, sin, angle_stride, rows, heads, dim, dtype};
    return by_rows(handle, args, rows * heads * dim, &Kernels::rope);
}

EXPORT int minedraft_silu_mul(void* handle, const void* gate, const void* up, int64_t in_stride, void* out,
                              int64_t out_stride, int64_t rows, int64_t size, int dtype) {
    const SiluMul args{gate, up, in_stride, out, out_stride, rows, size, dtype};
    return by_rows(handle, args, rows * size, &Kernels::silu_mul);
}

EXPORT int minedraft_argmax(void* handle, const void* x, int64_t x_stride, int64_t rows, int64_t columns, int dtype,
                            int64_t* index, uint8_t* is_finite) {
    const Argmax args{x, x_stride, rows, columns, dtype, index, is_finite};
    return by_rows(handle, args, rows * columns, &Kernels::argmax);
}

EXPORT int minedraft_store(void* handle, void* keys, void* values, int64_t block_size, int64_t heads, int64_t key_dim,
                           int64_t value_dim, int dtype, const void* key, const void* value, int64_t key_stride,
                           int64_t value_stride, const int64_t* slots, int64_t rows) {
    const Cache cache{static_cast<uint8_t*>(keys), static_cast<uint8_t*>(values), block_size, heads, key_dim, value_dim,
                      dtype};
    const Store args{cache, key, value, key_stride, value_stride, slots, rows};
    // Two tokens may share a word of the cache: one thread writes them all.
    return exclusively(handle, [&](const Kernels& kernels, Pool&) {
        kernels.store(args, 0, rows);
        return kOk;
    });
}

EXPORT int minedraft_attention(void* handle, void* keys, void* values, int64_t block_size, int64_t heads,
                               int64_t key_dim, int64_t value_dim, int dtype, const void* query, int64_t query_stride,
                               void* out, int64_t out_stride, int64_t group, const int64_t* spans, int64_t num_spans,
                               const int32_t* blocks, float scale) {
    return exclusively(handle, [&](const Kernels& kernels, Pool& pool) -> int {
        const Cache cache{static_cast<uint8_t*>(keys), static_cast<uint8_t*>(values), block_size, heads, key_dim,
                          value_dim, dtype};
        const Attention args{cache, query, query_stride, out, out_stride, group, reinterpret_cast<const Span*>(spans),
                             blocks, scale};
        const int64_t task_rows = group < kTaskQueries ? kTaskQueries / group : 1;
        int64_t num_tasks = 0, max_tokens = 0;
        for (int64_t i = 0; i < num_spans; ++i) {
            const int64_t tokens = args.spans[i].start + args.spans[i].rows;
            num_tasks += (args.spans[i].rows + task_rows - 1) / task_rows;
            max_tokens = tokens > max_tokens ? tokens : max_tokens;
        }
        const size_t scratch_bytes = kernels.attention_scratch_bytes(args, task_rows, max_tokens);
        auto* tasks = reinterpret_cast<Task*>(pool.shared.get(num_tasks * heads * sizeof(Task)));
        if (!tasks) return kNoMemory;
        num_tasks = 0;
        for (int64_t i = 0; i < num_spans; ++i)
            for (int64_t row = 0; row < args.spans[i].rows; row += task_rows) {
                const int64_t left = args.spans[i].rows - row;
                for (int64_t head = 0; head < heads; ++head)
                    tasks[num_tasks++] = {i, row, left < task_rows ? left : task_rows, head};
            }
        for (auto& memory : pool.scratch)
            if (!memory.get(scratch_bytes)) return kNoMemory;
        // Tasks differ in size, so each thread takes the next one; which thread it is does not show in the result.
        std::atomic<int64_t> next{0};
        pool.run([&](int thread) {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_tasks;) {
                const int64_t after = i + pool.size();
                kernels.attention(args, tasks[i], after < num_tasks ? &tasks[after] : nullptr,
                                  pool.scratch[thread].get(scratch_bytes));
            }
        });
        return kOk;
    });
}

// Requests are decided one by one, each by one thread. Python writes them: see choice/request.h.
EXPORT int minedraft_choose(void* handle, const void* requests, int64_t num_requests, int64_t num_rows,
                            int64_t columns, const int32_t* hashes, int64_t* tokens, int64_t* counts, int64_t top_m,
                            int32_t* kept, float* probs) {
    return exclusively(handle, [&](const Kernels& kernels, Pool& pool) -> int {
        const ChoiceCall call{static_cast<const ChoiceRequest*>(requests), num_requests, columns, hashes, tokens,
                              counts, top_m, kept, probs};
        const size_t scratch_bytes = choice_scratch_bytes(columns);
        for (auto& memory : pool.scratch)
            if (!memory.get(scratch_bytes)) return kNoMemory;
        std::atomic<int64_t> next{0};
        const auto work = [&](int thread) {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_requests;)
                kernels.choose(call, i, pool.scratch[thread].get(scratch_bytes));
        };
        if (num_requests == 1 || num_rows * columns < kSmall)
            work(0);
        else
            pool.run(work);
        return kOk;
    });
}
