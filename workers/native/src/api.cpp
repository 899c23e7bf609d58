// The entry points: plain C, called through ctypes. Python has checked every pointer and size.
//
// Those that compute return 0, kBusy (another thread is in a call with the same pool), kNoMemory, or
// kNotRecorded: calls are being recorded, and this one cannot be.
#include <cstring>

#include "calls.h"
#include "choice/request.h"
#include "cpu.h"

#ifndef MINEDRAFT_KEY
#define MINEDRAFT_KEY "none"
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace minedraft;

namespace {

enum Status : int { kOk = 0, kBusy = 1, kNoMemory = 2, kNotRecorded = 3, kTooManyRows = 4, kNoThreads = 5 };

struct Handle {
    const Kernels* kernels;
    Pool pool;
    Program* recorded = nullptr;  // where calls go instead of being computed
};

// Null where the compiler could not build one.
const Kernels* const kTables[] = {&kernels_scalar, &kernels_scalar_tiles, &kernels_avx2,
                                  &kernels_avx512, &kernels_avx512_bf16, &kernels_amx_bf16};

template <class F>
int exclusively(void* handle, F f) {
    auto& h = *static_cast<Handle*>(handle);
    if (!h.pool.enter()) return kBusy;
    const int status = h.recorded ? kNotRecorded : f(*h.kernels, h.pool);
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

// Make a call, or record it.
template <class Args>
int call(void* handle, const Args& args) {
    auto& h = *static_cast<Handle*>(handle);
    if (!h.recorded)
        return exclusively(handle, [&](const Kernels& kernels, Pool& pool) -> int {
            Call call(args);
            return Caller(kernels, pool).make(&call, 1) ? kOk : kNoMemory;
        });
    try {
        h.recorded->calls.push_back(args);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
    if (args.rows < h.recorded->max_rows) h.recorded->max_rows = args.rows;
    return kOk;
}

// Where packed weights lie, see linear.h: step `step` of column `column` of `panel` is at
// `panel * panel_bytes + column / kStrip * strip_bytes + step * step_bytes + column % kStrip * unit`.
struct Packing {
    int64_t width, inputs, unit;  // bytes of a weight, weights of one step of a column, and their bytes
    int64_t steps, step_bytes, strip_bytes, panel_bytes;

    Packing(const Kernels& kernels, int32_t dtype, int64_t in)
        : width(bytes_of(dtype)), inputs(inputs_per_step(dtype)), unit(width * inputs) {
        const bool is_tiled = kernels.has_tiles && dtype == kBfloat16;
        steps = steps_of(in, dtype, is_tiled ? kTileSteps : 1);
        step_bytes = (is_tiled ? kStrip : kPanel) * unit;
        strip_bytes = is_tiled ? steps * step_bytes : kStrip * unit;
        panel_bytes = steps * kPanel * unit;
    }
    int64_t column(int64_t out) const {
        return out / kPanel * panel_bytes + out % kPanel / kStrip * strip_bytes + out % kStrip * unit;
    }
    // Bytes of a row of `in` weights that step `step` has; none beyond its end.
    int64_t bytes_at(int64_t step, int64_t in) const {
        const int64_t left = (in - step * inputs) * width;
        return left < 0 ? 0 : left < unit ? left : unit;
    }
};

}  // namespace

EXPORT const char* minedraft_key() { return MINEDRAFT_KEY; }

// 0: this CPU lacks it; 1: the library was built without it; 2: it can be used; 3: the system does not allow it.
EXPORT int minedraft_has(int isa) {
    const Support support = isa < kScalar || isa > kAmxBf16 ? kLacks : support_of(static_cast<Isa>(isa));
    if (support == kLacks) return 0;
    if (!kTables[isa]) return 1;
    return support == kHas ? 2 : 3;
}

// Null if there is no memory or thread for it. `isa` is one that can be used.
EXPORT void* minedraft_open(int isa, int num_threads) {
    try {
        return new Handle{kTables[isa], Pool(num_threads)};
    } catch (...) {
        return nullptr;
    }
}
// Compute on so many threads from now on. Programs stay as they are.
EXPORT int minedraft_resize(void* handle, int num_threads) {
    auto& h = *static_cast<Handle*>(handle);
    if (!h.pool.enter()) return kBusy;
    int status = kOk;
    try {
        h.pool.resize(num_threads);
    } catch (...) {
        status = kNoThreads;
    }
    h.pool.leave();
    return status;
}
// Grows while any call of this library gets on, in whatever thread.
EXPORT int64_t minedraft_beats() { return num_beats.load(std::memory_order_relaxed); }

EXPORT void minedraft_close(void* handle) { delete static_cast<Handle*>(handle); }

// Weights are packed for the kernels of one handle, and those of others may have them laid out otherwise.
EXPORT int64_t minedraft_packed_bytes(void* handle, int64_t out, int64_t in, int dtype) {
    return round_up(out, kPanel) / kPanel * Packing(*static_cast<Handle*>(handle)->kernels, dtype, in).panel_bytes;
}

EXPORT void minedraft_pack(void* handle, const void* weight, int dtype, int64_t out, int64_t in, void* packed) {
    const Packing packing(*static_cast<Handle*>(handle)->kernels, dtype, in);
    for (int64_t row = 0; row < round_up(out, kPanel); ++row) {
        const auto* from = static_cast<const uint8_t*>(weight) + row * in * packing.width;
        uint8_t* to = static_cast<uint8_t*>(packed) + packing.column(row);
        for (int64_t step = 0; step < packing.steps; ++step, to += packing.step_bytes) {
            std::memset(to, 0, packing.unit);
            if (row < out) std::memcpy(to, from + step * packing.unit, packing.bytes_at(step, in));
        }
    }
}

// Row `ids[i]` of the weight, as it was before packing, to row i of `y`, which has the weight's dtype.
EXPORT void minedraft_rows(void* handle, const void* packed, int dtype, int64_t in, const int64_t* ids,
                           int64_t num_ids, void* y) {
    const Packing packing(*static_cast<Handle*>(handle)->kernels, dtype, in);
    for (int64_t i = 0; i < num_ids; ++i) {
        const auto* from = static_cast<const uint8_t*>(packed) + packing.column(ids[i]);
        auto* to = static_cast<uint8_t*>(y) + i * in * packing.width;
        for (int64_t step = 0; step * packing.inputs < in; ++step)
            std::memcpy(to + step * packing.unit, from + step * packing.step_bytes, packing.bytes_at(step, in));
    }
}

EXPORT int minedraft_linear(void* handle, const void* x, int64_t x_stride, const void* weight, const float* bias,
                            void* y, int64_t y_stride, int64_t rows, int64_t in, int64_t out, int x_dtype,
                            int weight_dtype, int y_dtype) {
    return call(handle, Linear{x, x_stride, static_cast<const uint8_t*>(weight), bias, y, y_stride, rows, in, out,
                               x_dtype, weight_dtype, y_dtype, nullptr});
}

EXPORT int minedraft_norm(void* handle, const void* x, int64_t x_stride, void* residual, int64_t residual_stride,
                          const void* weight, void* out, int64_t out_stride, int64_t rows, int64_t size, float eps,
                          int dtype) {
    return call(handle, Norm{x, x_stride, residual, residual_stride, weight, out, out_stride, rows, size, eps, dtype});
}

EXPORT int minedraft_rope(void* handle, void* x, int64_t x_stride, const void* cos, const void* sin,
                          int64_t angle_stride, int64_t rows, int64_t heads, int64_t dim, int dtype) {
    return call(handle, Rope{x, x_stride, cos, sin, angle_stride, rows, heads, dim, dtype});
}

EXPORT int minedraft_silu_mul(void* handle, const void* gate, const void* up, int64_t in_stride, void* out,
                              int64_t out_stride, int64_t rows, int64_t size, int dtype) {
    return call(handle, SiluMul{gate, up, in_stride, out, out_stride, rows, size, dtype});
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
    return call(handle, Store{cache, key, value, key_stride, value_stride, slots, rows});
}

EXPORT int minedraft_attention(void* handle, void* keys, void* values, int64_t block_size, int64_t heads,
                               int64_t key_dim, int64_t value_dim, int dtype, const void* query, int64_t query_stride,
                               void* out, int64_t out_stride, int64_t rows, int64_t group, const int64_t* spans,
                               int64_t num_spans, const int32_t* blocks, float scale) {
    const Cache cache{static_cast<uint8_t*>(keys), static_cast<uint8_t*>(values), block_size, heads, key_dim, value_dim,
                      dtype};
    return call(handle, Attention{cache, query, query_stride, out, out_stride, rows, group,
                                  reinterpret_cast<const Span*>(spans), num_spans, blocks, scale});
}

EXPORT void* minedraft_new_program() { return new (std::nothrow) Program; }
EXPORT void minedraft_free_program(void* program) { delete static_cast<Program*>(program); }

// From now on calls are recorded in `program`; they are made again after null.
EXPORT void minedraft_record(void* handle, void* program) {
    static_cast<Handle*>(handle)->recorded = static_cast<Program*>(program);
}

// Make all calls of a program, on the first `rows` rows of its matrices.
EXPORT int minedraft_run(void* handle, void* program, int64_t rows, const int64_t* spans, int64_t num_spans,
                         const int32_t* blocks, const int64_t* slots) {
    return exclusively(handle, [&](const Kernels& kernels, Pool& pool) -> int {
        auto& p = *static_cast<Program*>(program);
        if (rows > p.max_rows) return kTooManyRows;
        const Batch batch{rows, slots, reinterpret_cast<const Span*>(spans), num_spans, blocks};
        for (auto& call : p.calls) std::visit([&](auto& args) { set_batch(args, batch); }, call);
        return Caller(kernels, pool).make(p.calls.data(), p.calls.size()) ? kOk : kNoMemory;
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
        const auto work = [&](Member member) {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < num_requests;) {
                kernels.choose(call, i, pool.scratch[member.thread].get(scratch_bytes));
                beat();
            }
        };
        if (num_requests == 1 || num_rows * columns < kSmall)
            work(Member{0, 1, nullptr});
        else
            pool.run(work);
        return kOk;
    });
}
