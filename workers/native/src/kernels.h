// What the kernels of one instruction set take, and the table through which api.cpp calls them.
//
// Every pointer and size was checked by the Python side. Strides are in elements.
#pragma once

#include <cstddef>
#include <cstdint>

// Sums must stay in registers: a compiler that leaves one of these calls in place is three times slower.
#define MINEDRAFT_INLINE inline __attribute__((always_inline))

namespace minedraft {

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// Columns of one strip: what one AVX-512 register sums. A panel of packed weights is two strips.
constexpr int64_t kStrip = 16;
constexpr int64_t kPanel = 2 * kStrip;

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Inputs that share one machine word of the packed layout: bfloat16 goes in pairs.
inline int64_t inputs_per_step(int32_t dtype) { return dtype == kBfloat16 ? 2 : 1; }
// Steps of one tile of packed bfloat16 weights.
constexpr int64_t kTileSteps = 16;
// Steps that `in` inputs take, and fill up with zeros.
inline int64_t steps_of(int64_t in, int32_t dtype, int64_t multiple) {
    return round_up((in + inputs_per_step(dtype) - 1) / inputs_per_step(dtype), multiple);
}
inline int64_t bytes_of(int32_t dtype) { return dtype == kFloat32 ? 4 : 2; }

// y[rows, out] = x[rows, in] W^T + bias
struct Linear {
    const void* x;
    int64_t x_stride;
    const uint8_t* weight;  // packed, see linear.h
    const float* bias;      // [out] or null
    void* y;
    int64_t y_stride;
    int64_t rows, in, out;
    int32_t x_dtype, weight_dtype, y_dtype;
    uint8_t* packed_x;  // scratch of `packed_x_bytes`
};

// residual += x (rounded to dtype, where residual is given); out = residual / rms(residual) * weight
struct Norm {
    const void* x;
    int64_t x_stride;
    void* residual;  // or null: then x itself is normed
    int64_t residual_stride;
    const void* weight;
    void* out;
    int64_t out_stride;
    int64_t rows, size;
    float eps;
    int32_t dtype;
};

// Rotates `heads` heads of `dim` in place: (a, b) -> (a cos - b sin, b cos + a sin), halves of a head.
struct Rope {
    void* x;
    int64_t x_stride;
    const void* cos;  // [rows, dim]
    const void* sin;
    int64_t angle_stride;
    int64_t rows, heads, dim;
    int32_t dtype;
};

// out = silu(gate) * up
struct SiluMul {
    const void* gate;
    const void* up;
    int64_t in_stride;
    void* out;
    int64_t out_stride;
    int64_t rows, size;
    int32_t dtype;
};

// Where one layer's keys and values lie, see cache.h.
struct Cache {
    uint8_t* keys;
    uint8_t* values;
    int64_t block_size, heads, key_dim, value_dim;
    int32_t dtype;
};

struct Store {
    Cache cache;
    const void* key;
    const void* value;
    int64_t key_stride, value_stride;
    const int64_t* slots;  // [rows], block * block_size + offset
    int64_t rows;
};

// One request's query rows: `rows` of them from `first_row` on; the first is token number `start`.
struct Span {
    int64_t first_row, rows, start, first_block;  // first_block: where its ids begin in `blocks`
};

// A part of a span that one thread attends for one key head.
struct Task {
    int64_t span, first, rows, head;  // `first` counts from the span's first row
};

struct Attention {
    Cache cache;
    const void* query;
    int64_t query_stride;
    void* out;
    int64_t out_stride;
    int64_t rows;
    int64_t group;  // query heads of one key head
    const Span* spans;
    int64_t num_spans;
    const int32_t* blocks;
    float scale;
};

struct Argmax {
    const void* x;
    int64_t x_stride;
    int64_t rows, columns;
    int32_t dtype;
    int64_t* index;
    uint8_t* is_finite;
};

struct ChoiceCall;  // choice/request.h

struct Kernels {
    const char* name;
    bool has_tiles;  // bfloat16 weights are packed for tiles, see linear.h
    size_t (*packed_x_bytes)(const Linear&);
    size_t (*linear_scratch_bytes)(const Linear&);
    // Part `part` of `num_parts`.
    void (*pack_x)(const Linear&, int64_t part, int64_t num_parts);
    void (*linear)(const Linear&, int64_t first_panel, int64_t last_panel, uint8_t* scratch);
    void (*norm)(const Norm&, int64_t first_row, int64_t last_row);
    void (*rope)(const Rope&, int64_t first_row, int64_t last_row);
    void (*silu_mul)(const SiluMul&, int64_t first_row, int64_t last_row);
    void (*store)(const Store&, int64_t first_row, int64_t last_row);
    void (*argmax)(const Argmax&, int64_t first_row, int64_t last_row);
    size_t (*attention_scratch_bytes)(const Attention&, int64_t max_task_rows, int64_t max_tokens);
    // `next`: what the thread is likely to do after it, or null; its first tokens are fetched meanwhile.
    void (*attention)(const Attention&, const Task&, const Task* next, uint8_t* scratch);
    void (*choose)(const ChoiceCall&, int64_t request, uint8_t* scratch);
};

extern const Kernels kernels_scalar;
extern const Kernels kernels_scalar_tiles;
// Weak: a compiler that does not know one of them leaves its address null.
extern const Kernels kernels_avx2 __attribute__((weak));
extern const Kernels kernels_avx512 __attribute__((weak));
extern const Kernels kernels_avx512_bf16 __attribute__((weak));
extern const Kernels kernels_amx_bf16 __attribute__((weak));

}  // namespace minedraft
