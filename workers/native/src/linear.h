// Linear layers: y = x W^T + bias over weights packed once.
//
// Packed weights, one panel of 32 columns (outputs) after the other; a panel is read from its beginning
// to its end, a single stream from memory, and serves all rows before the next one is begun:
//
//   bfloat16          step 0: c0i0 c0i1 c1i0 c1i1 ... c31i0 c31i1   step 1: c0i2 c0i3 ...     [out/32][in/2][32][2]
//   float16, float32  step 0: c0i0 c1i0 c2i0 ... c31i0              step 1: c0i1 ...          [out/32][in][32]
//
// For tiles (linear_tiles.h) the two strips of sixteen columns of a bfloat16 panel lie one after the other instead,
// and zeros fill the inputs up to a multiple of 32:
//
//   step 0: c0i0 c0i1 ... c15i0 c15i1   step 1: c0i2 c0i3 ...   ...   step 0: c16i0 c16i1 ...      [out/16][in/2][16][2]
//
// The last panel is filled up with columns of zeros, and an odd last input of a pair with zeros.
// x is laid out anew for each call, row block after row block, as a tile of R rows reads it: [in/2][R][2]
// or [in][R]. Rows are cut into blocks of nearly equal size, at most kMaxRows each.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "rows.h"
#include "tile.h"

namespace minedraft {
namespace {

#ifdef MINEDRAFT_TILES
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif

// Weights are fetched while others are multiplied, evenly, so that neither memory nor arithmetic waits: by memory's
// own prefetcher where there are few rows, which does best on AMD's cores while reading is all that they do; then so
// many bytes ahead; and where a panel is gone through several times, the next panel, a part of it each time. Memory's
// own prefetcher does best with help just ahead of use on Intel's cores up to some eight rows, by an eighth to a
// quarter, and on AMD's Zen 4 from three to five, by a quarter.
constexpr int64_t kFetchDistance = 16384;
constexpr int kFetchFromRows = 3;
struct NearFetching {
    int from_rows, to_rows;
    int64_t distance;
    bool fits(int rows) const { return from_rows <= rows && rows <= to_rows; }
};
// Zen 4 is that of AMD's family 25 with AVX-512.
inline NearFetching near_fetching_here() {
#if defined(__x86_64__)
    if (__builtin_cpu_is("intel")) return {1, 8, 1024};
    unsigned a = 0, b, c, d;
    const bool is_family_25 = __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == 25;
    if (__builtin_cpu_is("amd") && is_family_25 && __builtin_cpu_supports("avx512f")) return {3, 5, 384};
#endif
    return {1, 0, 0};
}
inline const NearFetching& near_fetching() {
    static const NearFetching found = near_fetching_here();
    return found;
}
// Larger panels would not stay in the second-level cache, two of them at once.
constexpr int64_t kMaxFetchedPanel = 1 << 18;
constexpr int64_t kFetchingPasses = 4;

struct RowBlocks {
    int64_t rows, count;

    explicit RowBlocks(int64_t num_rows) : rows(num_rows), count((num_rows + kMaxRows - 1) / kMaxRows) {}
    int64_t begin(int64_t block) const { return rows * block / count; }
};

template <class Kind>
inline int64_t num_steps(const Linear& a) {
    return (a.in + Kind::kInputs - 1) / Kind::kInputs;
}

// Bytes between the strips of a panel, and from step to step of one.
template <class Kind>
struct PanelLayout {
    static constexpr bool kStripsApart = kHasTiles && Kind::kInputs == 2;
    static constexpr int64_t kStep = (kStripsApart ? 1 : 2) * Kind::kStripBytes;
    int64_t apart, bytes;

    explicit PanelLayout(const Linear& a)
        : apart((kStripsApart ? steps_of(a.in, kBfloat16, kTileSteps) : 1) * Kind::kStripBytes),
          bytes(kStripsApart ? 2 * apart : num_steps<Kind>(a) * 2 * Kind::kStripBytes) {}
};

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

// One panel times R rows from `first_row` on.
template <class Kind, int R>
void multiply_panel(const Linear& a, int64_t panel, int64_t first_row, RowBlocks blocks, int64_t block) {
    constexpr int S = strips_for<R>(2);
    using Layout = PanelLayout<Kind>;
    constexpr int64_t w_step = Layout::kStep, read = 2 * Kind::kStripBytes;  // bytes of one step, of both strips
    using X = typename Kind::template Packed<R>;
    const Layout layout(a);
    const bool is_near = near_fetching().fits(R);
    const int64_t distance = is_near ? near_fetching().distance : kFetchDistance;
    const int64_t steps = num_steps<Kind>(a);
    const uint8_t* at = a.weight + panel * layout.bytes;
    const uint8_t* x = a.packed_x + first_row * steps * Kind::kXBytes;
    for (int64_t strip = 0; strip < 2; strip += S) {
        const uint8_t* begin = at + strip * layout.apart;
        const uint8_t* w[S];
        for (int i = 0; i < S; ++i) w[i] = begin + i * layout.apart;
        Sums<R, S> sums;
        sums.clear();
        const int64_t pass = block * (2 / S) + strip / S, num_passes = blocks.count * (2 / S);
        const int64_t num_fetching = num_passes < kFetchingPasses ? num_passes : kFetchingPasses;
        if (num_passes > 1 && layout.bytes <= kMaxFetchedPanel && pass < num_fetching)
            multiply<Kind, X>(sums, x, w, w_step, steps,
                              Ahead<1>{{at + layout.bytes + pass * layout.bytes / num_fetching}, read / num_fetching});
        else if ((R >= kFetchFromRows || is_near) && pass == 0)
            multiply<Kind, X>(sums, x, w, w_step, steps,
                              Ahead<2>{{begin + distance, begin + distance + layout.apart}, w_step});
        else
            multiply<Kind, X>(sums, x, w, w_step, steps);
        float out[R * S * kStrip];
        sums.write(out);
        const int64_t column = panel * kPanel + strip * kStrip;
        if (a.y_dtype == kFloat32)
            write_rows<Float32>(a, out, R, S, column, row_of<Float32>(a.y, first_row, a.y_stride) + column, a.y_stride);
        else
            write_rows<Bfloat16>(a, out, R, S, column, row_of<Bfloat16>(a.y, first_row, a.y_stride) + column,
                                 a.y_stride);
    }
}

template <class Kind, int R>
inline void multiply_rows(const Linear& a, int64_t panel, int64_t first_row, int64_t size, RowBlocks blocks, int64_t b) {
    if (size == R) return multiply_panel<Kind, R>(a, panel, first_row, blocks, b);
    if constexpr (R > 1) multiply_rows<Kind, R - 1>(a, panel, first_row, size, blocks, b);
}

template <class Kind>
void multiply_panels(const Linear& a, int64_t first_panel, int64_t last_panel) {
    const RowBlocks blocks(a.rows);
    for (int64_t panel = first_panel; panel < last_panel; ++panel)
        for (int64_t b = 0; b < blocks.count; ++b) {
            const int64_t begin = blocks.begin(b);
            multiply_rows<Kind, kMaxRows>(a, panel, begin, blocks.begin(b + 1) - begin, blocks, b);
        }
}

// Calls `f` with the kind that fits the dtypes.
template <class F>
inline auto with_kind(const Linear& a, F f) {
    if constexpr (kHasDot && !kHasTiles) {
        if (a.x_dtype == kBfloat16) return f(PairsByPairs{});
    }
    if (a.weight_dtype == kBfloat16) return f(FloatsByPairs{});
    if (a.weight_dtype == kFloat16) return f(FloatsByHalves{});
    return f(FloatsByFloats{});
}

size_t packed_x_bytes(const Linear& a) {
    return with_kind(a, [&](auto kind) -> size_t { return a.rows * num_steps<decltype(kind)>(a) * kind.kXBytes; });
}
inline size_t linear_scratch_bytes(const Linear&) { return 0; }

void pack_x(const Linear& a, int64_t part, int64_t num_parts) {
    with_kind(a, [&](auto kind) {
        const int64_t steps = num_steps<decltype(kind)>(a);
        pack_rows<decltype(kind)>(a, steps * part / num_parts, steps * (part + 1) / num_parts);
    });
}
void linear(const Linear& a, int64_t first_panel, int64_t last_panel, uint8_t*) {
    with_kind(a, [&](auto kind) { multiply_panels<decltype(kind)>(a, first_panel, last_panel); });
}

}  // namespace
}  // namespace minedraft
