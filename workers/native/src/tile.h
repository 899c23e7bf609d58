// The one inner loop: R rows of x times one or two strips of sixteen columns, summed in registers.
//
// Step after step a tile takes one packed row of weights of each strip and adds its products to the sums.
// Every sum has one register lane and takes its products in the order of the inputs. So a row's result
// depends on nothing but its x and the weights: not on R, on other rows, on threads or on blocks.
#pragma once

#include "kernels.h"

namespace minedraft {
namespace {

constexpr int kHalf = static_cast<int>(kStrip) / kLanes;  // registers of one strip

// Strips, of 1 to `most`, that R rows can sum at once. Few sums would wait for each other's additions; with the
// weights of a step and one input they must fit the registers.
template <int R>
constexpr int strips_for(int most) {
    int strips = 1;
    while (2 * strips <= most && 2 * strips * kHalf * (R + 1) < kRegisters) strips *= 2;
    return strips;
}

template <int R, int S>
struct Sums {
    Floats at[R][S * kHalf];

    MINEDRAFT_INLINE void clear() {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < S * kHalf; ++v) at[r][v] = zeros();
    }
    // To and from memory, `stride` numbers from row to row.
    MINEDRAFT_INLINE void write(float* p, int64_t stride = S * kStrip) const {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < S * kHalf; ++v) store(p + r * stride + v * kLanes, at[r][v]);
    }
    MINEDRAFT_INLINE void read(const float* p, int64_t stride) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < S * kHalf; ++v) at[r][v] = load(p + r * stride + v * kLanes);
    }
};

// Where x lies, in bytes: row r, input i (of a step's), step s at `s * kStep + i * kInput + r * kRow`.
template <int Step, int Input, int Row>
struct Layout {
    static constexpr int kStep = Step, kInput = Input, kRow = Row;
};

// x and weights bfloat16 in pairs, by the instruction for it.
//   weights of a strip, one step: c0i0 c0i1 c1i0 c1i1 ... c15i0 c15i1
struct PairsByPairs {
    static constexpr int kInputs = 2, kXBytes = 4;
    static constexpr int64_t kStripBytes = 64;
    template <int R>
    using Packed = Layout<4 * R, 0, 4>;

    template <class X, int R, int S>
    static MINEDRAFT_INLINE void step(Sums<R, S>& sums, const uint8_t* x, const uint8_t* const (&w)[S]) {
        Pairs weights[S * kHalf];
#pragma GCC unroll 8
        for (int v = 0; v < S * kHalf; ++v) weights[v] = load_pairs(w[v / kHalf] + v % kHalf * (4 * kLanes));
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Pairs pair = fill_pair(x + r * X::kRow);
#pragma GCC unroll 8
            for (int v = 0; v < S * kHalf; ++v) sums.at[r][v] = dot(sums.at[r][v], weights[v], pair);
        }
    }
};

template <class X, int R, int N>
MINEDRAFT_INLINE void add_products(Floats (&sums)[R][N], const uint8_t* x, const Floats (&weights)[N]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const Floats value = fill(*reinterpret_cast<const float*>(x + r * X::kRow));
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) sums[r][v] = fma(weights[v], value, sums[r][v]);
    }
}

// x float32, weights bfloat16 in pairs as above: first the even inputs' halves, then the odd ones'.
struct FloatsByPairs {
    static constexpr int kInputs = 2, kXBytes = 8;
    static constexpr int64_t kStripBytes = 64;
    template <int R>
    using Packed = Layout<8 * R, 4 * R, 4>;

    template <class X, int R, int S>
    static MINEDRAFT_INLINE void step(Sums<R, S>& sums, const uint8_t* x, const uint8_t* const (&w)[S]) {
        Floats weights[S * kHalf];
#pragma GCC unroll 8
        for (int v = 0; v < S * kHalf; ++v) weights[v] = low(load_pairs(w[v / kHalf] + v % kHalf * (4 * kLanes)));
        add_products<X>(sums.at, x, weights);
#pragma GCC unroll 8
        for (int v = 0; v < S * kHalf; ++v) weights[v] = high(load_pairs(w[v / kHalf] + v % kHalf * (4 * kLanes)));
        add_products<X>(sums.at, x + X::kInput, weights);
    }
};

// x float32, weights one by one: c0 c1 ... c15
template <int32_t WeightDtype>
struct FloatsBySingles {
    static constexpr int kInputs = 1, kXBytes = 4;
    static constexpr int64_t kStripBytes = kStrip * (WeightDtype == kFloat32 ? 4 : 2);
    template <int R>
    using Packed = Layout<4 * R, 0, 4>;

    template <class X, int R, int S>
    static MINEDRAFT_INLINE void step(Sums<R, S>& sums, const uint8_t* x, const uint8_t* const (&w)[S]) {
        Floats weights[S * kHalf];
#pragma GCC unroll 8
        for (int v = 0; v < S * kHalf; ++v) {
            const uint8_t* at = w[v / kHalf] + v % kHalf * (kLanes * kStripBytes / kStrip);
            if constexpr (WeightDtype == kFloat32)
                weights[v] = load(reinterpret_cast<const float*>(at));
            else
                weights[v] = load_float16(reinterpret_cast<const uint16_t*>(at));
        }
        add_products<X>(sums.at, x, weights);
    }
};
using FloatsByFloats = FloatsBySingles<kFloat32>;
using FloatsByHalves = FloatsBySingles<kFloat16>;

// Memory to be fetched while a tile multiplies: every step, the lines at `at[i]`.
template <int N>
struct Ahead {
    const uint8_t* at[N];
    int64_t step;
};
struct Nothing {};

// Add `num_steps` steps to the sums. Strip i of the weights begins at w[i]; its steps are `w_step` bytes apart.
template <class Kind, class X, int R, int S, class Fetch = Nothing>
inline void multiply(Sums<R, S>& result, const uint8_t* x, const uint8_t* const (&first)[S], int64_t w_step,
                     int64_t num_steps, Fetch fetch = {}) {
    const uint8_t* w[S];
#pragma GCC unroll 4
    for (int i = 0; i < S; ++i) w[i] = first[i];
    Sums<R, S> sums = result;  // nobody else knows where these are, so they need not be in memory
    for (int64_t s = 0; s < num_steps; ++s) {
        if constexpr (!__is_same(Fetch, Nothing)) {
#pragma GCC unroll 8
            for (auto& line : fetch.at) {
                prefetch(line);
                line += fetch.step;
            }
        }
        Kind::template step<X>(sums, x, w);
        x += X::kStep;
#pragma GCC unroll 4
        for (int i = 0; i < S; ++i) w[i] += w_step;
    }
    result = sums;
}

}  // namespace
}  // namespace minedraft
