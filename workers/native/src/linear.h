// Linear layers: y = x W^T + bias over weights packed once.
//
// Packed weights, one panel of 32 columns (outputs) after the other; a panel is read from its beginning
// to its end, a single stream from memory, and serves all rows before the next one is begun:
//
//   bfloat16          step 0: c0i0 c0i1 c1i0 c1i1 ... c31i0 c31i1   step 1: c0i2 c0i3 ...     [out/32][in/2][32][2]
//   float16, float32  step 0: c0i0 c1i0 c2i0 ... c31i0              step 1: c0i1 ...          [out/32][in][32]
//
// The last panel is filled up with columns of zeros, and an odd last input of a pair with zeros.
// x is laid out anew for each call, row block after row block, as a tile of R rows reads it: [in/2][R][2]
// or [in][R]. Rows are cut into blocks of nearly equal size, at most kMaxRows each.
#pragma once

#include "rows.h"
#include "tile.h"

namespace minedraft {
namespace {

// Bytes between what is multiplied and what is fetched for it. Memory's own prefetcher does best while
// reading is all that a core does; from some rows on multiplying holds it up.
constexpr int64_t kFetchDistance = 16384;
template <class Kind>
constexpr int64_t kFetchFromRows = Kind::kInputs == 2 && Kind::kXBytes == 4 ? 6 : 3;

struct RowBlocks {
    int64_t rows, count;

    explicit RowBlocks(int64_t num_rows) : rows(num_rows), count((num_rows + kMaxRows - 1) / kMaxRows) {}
    int64_t begin(int64_t block) const { return rows * block / count; }
};

template <class Kind>
inline int64_t num_steps(const Linear& a) {
    return (a.in + Kind::kInputs - 1) / Kind::kInputs;
}

inline float float_at(const void* p, int32_t dtype, int64_t i) {
    if (dtype == kFloat32) return static_cast<const float*>(p)[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(p)[i]) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The inputs of the steps first_step..last_step.
template <class Kind>
void pack_rows(const Linear& a, int64_t first_step, int64_t last_step) {
    const RowBlocks blocks(a.rows);
    const int64_t steps = num_steps<Kind>(a), width = a.x_dtype == kFloat32 ? 4 : 2;
    const int64_t first = first_step * Kind::kInputs, last = last_step * Kind::kInputs;  // inputs; some may be missing
    const int64_t present = last < a.in ? last : a.in;
    for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t begin = blocks.begin(b), size = blocks.begin(b + 1) - begin;
        for (int64_t r = 0; r < size; ++r) {
            const auto* x = static_cast<const uint8_t*>(a.x) + (begin + r) * a.x_stride * width;
            uint8_t* to = a.packed_x + begin * steps * Kind::kXBytes;
            if constexpr (Kind::kXBytes == 4 && Kind::kInputs == 2) {
                auto* pairs = reinterpret_cast<uint32_t*>(to) + r;
                for (int64_t s = first_step; s < present / 2; ++s) std::memcpy(pairs + s * size, x + 4 * s, 4);
                if (present < last) {
                    uint16_t last_input;
                    std::memcpy(&last_input, x + 2 * present - 2, 2);
                    pairs[(last_step - 1) * size] = last_input;
                }
            } else {
                auto* floats = reinterpret_cast<float*>(to) + r;
                for (int64_t i = first; i < present; ++i) floats[i * size] = float_at(x, a.x_dtype, i);
                for (int64_t i = present; i < last; ++i) floats[i * size] = 0;
            }
        }
    }
}

// The sums of `rows` rows and `strips` strips, row after row, to y.
template <class D>
void write_rows(const Linear& a, const float* sums, int64_t rows, int64_t strips, int64_t first_row,
                int64_t first_column) {
    for (int64_t r = 0; r < rows; ++r, sums += strips * kStrip) {
        auto* y = row_of<D>(a.y, first_row + r, a.y_stride);
        for (int64_t i = 0; i < strips * kStrip; i += kLanes) {
            const int64_t column = first_column + i, count = a.out - column;
            if (count <= 0) break;
            Floats value = load(sums + i);
            if (a.bias) value = add(value, load_some<Float32>(a.bias + column, count));
            store_some<D>(y + column, value, count);
        }
    }
}

// One panel times R rows from `first_row` on.
template <class Kind, int R>
void multiply_panel(const Linear& a, int64_t panel, int64_t first_row, bool fetches) {
    constexpr int S = kStripsFor<R>;
    constexpr int64_t w_step = 2 * Kind::kStripBytes;
    using X = typename Kind::template Packed<R>;
    const int64_t steps = num_steps<Kind>(a);
    const uint8_t* x = a.packed_x + first_row * steps * Kind::kXBytes;
    for (int64_t strip = 0; strip < 2; strip += S) {
        const uint8_t* begin = a.weight + panel * steps * w_step + strip * Kind::kStripBytes;
        const uint8_t* w[S];
        for (int i = 0; i < S; ++i) w[i] = begin + i * Kind::kStripBytes;
        Sums<R, S> sums;
        sums.clear();
        if (R >= kFetchFromRows<Kind> && fetches && strip == 0)
            multiply<Kind, X>(sums, x, w, w_step, steps,
                              Ahead<2>{{begin + kFetchDistance, begin + kFetchDistance + Kind::kStripBytes}, w_step});
        else
            multiply<Kind, X>(sums, x, w, w_step, steps);
        float out[R * S * kStrip];
        sums.write(out);
        (a.y_dtype == kFloat32 ? write_rows<Float32> : write_rows<Bfloat16>)(a, out, R, S, first_row,
                                                                             panel * kPanel + strip * kStrip);
    }
}

template <class Kind, int R>
inline void multiply_rows(const Linear& a, int64_t panel, int64_t first_row, int64_t size, bool fetches) {
    if (size == R) return multiply_panel<Kind, R>(a, panel, first_row, fetches);
    if constexpr (R > 1) multiply_rows<Kind, R - 1>(a, panel, first_row, size, fetches);
}

template <class Kind>
void multiply_panels(const Linear& a, int64_t first_panel, int64_t last_panel) {
    const RowBlocks blocks(a.rows);
    for (int64_t panel = first_panel; panel < last_panel; ++panel)
        for (int64_t b = 0; b < blocks.count; ++b) {
            const int64_t begin = blocks.begin(b);
            multiply_rows<Kind, kMaxRows>(a, panel, begin, blocks.begin(b + 1) - begin, b == 0);
        }
}

// Calls `f` with the kind that fits the dtypes.
template <class F>
inline auto with_kind(const Linear& a, F f) {
    if constexpr (kHasDot) {
        if (a.x_dtype == kBfloat16) return f(PairsByPairs{});
    }
    if (a.weight_dtype == kBfloat16) return f(FloatsByPairs{});
    if (a.weight_dtype == kFloat16) return f(FloatsByHalves{});
    return f(FloatsByFloats{});
}

size_t packed_x_bytes(const Linear& a) {
    return with_kind(a, [&](auto kind) -> size_t { return a.rows * num_steps<decltype(kind)>(a) * kind.kXBytes; });
}
void pack_x(const Linear& a, int64_t part, int64_t num_parts) {
    with_kind(a, [&](auto kind) {
        const int64_t steps = num_steps<decltype(kind)>(a);
        pack_rows<decltype(kind)>(a, steps * part / num_parts, steps * (part + 1) / num_parts);
    });
}
void linear(const Linear& a, int64_t first_panel, int64_t last_panel) {
    with_kind(a, [&](auto kind) { multiply_panels<decltype(kind)>(a, first_panel, last_panel); });
}

}  // namespace
}  // namespace minedraft
