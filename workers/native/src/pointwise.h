// Norm, rotary embedding, silu and argmax. In bfloat16 each rounds where transformers' own operators do.
#pragma once

#include <cmath>

#include "rows.h"

namespace minedraft {
namespace {

template <class F>
inline void with_dtype(int32_t dtype, F f) {
    if (dtype == kFloat32)
        f(Float32{});
    else
        f(Bfloat16{});
}

// h = x + residual; y = h / sqrt(mean(h^2) + eps), rounded, times weight. The sum of squares is taken
// lane by lane, then over the lanes.
template <class D>
void norm_row(const Norm& a, int64_t row) {
    const auto* x = row_of<D>(a.x, row, a.x_stride);
    auto* residual = a.residual ? row_of<D>(a.residual, row, a.residual_stride) : nullptr;
    const auto* weight = row_of<D>(a.weight, 0, 0);
    auto* out = row_of<D>(a.out, row, a.out_stride);
    Floats squares = zeros();
    for (int64_t i = 0; i < a.size; i += kLanes) {
        Floats h = load_some<D>(x + i, a.size - i);
        if (residual) {
            h = D::rounded(add(h, load_some<D>(residual + i, a.size - i)));
            store_some<D>(residual + i, h, a.size - i);
        }
        squares = fma(h, h, squares);
    }
    const Floats scale = fill(1.0f / std::sqrt(sum_of(squares) / static_cast<float>(a.size) + a.eps));
    const auto* h = residual ? residual : x;
    for (int64_t i = 0; i < a.size; i += kLanes) {
        const Floats normed = D::rounded(mul(load_some<D>(h + i, a.size - i), scale));
        store_some<D>(out + i, mul(load_some<D>(weight + i, a.size - i), normed), a.size - i);
    }
}

void norm(const Norm& a, int64_t first_row, int64_t last_row) {
    with_dtype(a.dtype, [&](auto dtype) {
        for (int64_t row = first_row; row < last_row; ++row) norm_row<decltype(dtype)>(a, row);
    });
}

template <class D>
void rope_row(const Rope& a, int64_t row) {
    const auto* cos = row_of<D>(a.cos, row, a.angle_stride);
    const auto* sin = row_of<D>(a.sin, row, a.angle_stride);
    const int64_t half = a.dim / 2;
    auto* heads = row_of<D>(a.x, row, a.x_stride);
    for (int64_t i = 0; i < half; i += kLanes) {
        const int64_t n = half - i;
        const Floats left_cos = load_some<D>(cos + i, n), left_sin = load_some<D>(sin + i, n);
        const Floats right_cos = load_some<D>(cos + half + i, n), right_sin = load_some<D>(sin + half + i, n);
        for (int64_t head = 0; head < a.heads; ++head) {
            auto* x = heads + head * a.dim + i;
            const Floats left = load_some<D>(x, n), right = load_some<D>(x + half, n);
            store_some<D>(x, sub(D::rounded(mul(left, left_cos)), D::rounded(mul(right, left_sin))), n);
            store_some<D>(x + half, add(D::rounded(mul(right, right_cos)), D::rounded(mul(left, right_sin))), n);
        }
    }
}

void rope(const Rope& a, int64_t first_row, int64_t last_row) {
    with_dtype(a.dtype, [&](auto dtype) {
        for (int64_t row = first_row; row < last_row; ++row) rope_row<decltype(dtype)>(a, row);
    });
}

template <class D>
void silu_mul_row(const SiluMul& a, int64_t row) {
    const auto* gate = row_of<D>(a.gate, row, a.in_stride);
    const auto* up = row_of<D>(a.up, row, a.in_stride);
    auto* out = row_of<D>(a.out, row, a.out_stride);
    for (int64_t i = 0; i < a.size; i += kLanes) {
        const int64_t n = a.size - i;
        const Floats x = load_some<D>(gate + i, n);
        const Floats silu = div(x, add(fill(1.0f), exponential(sub(zeros(), x))));
        store_some<D>(out + i, mul(D::rounded(silu), load_some<D>(up + i, n)), n);
    }
}

void silu_mul(const SiluMul& a, int64_t first_row, int64_t last_row) {
    with_dtype(a.dtype, [&](auto dtype) {
        for (int64_t row = first_row; row < last_row; ++row) silu_mul_row<decltype(dtype)>(a, row);
    });
}

// The first of the largest; a NaN counts as larger than everything, as in torch.
template <class D>
void argmax_row(const Argmax& a, int64_t row) {
    const auto* x = row_of<D>(a.x, row, a.x_stride);
    // Lane by lane: the largest so far and its column (columns fit a float32 exactly: they are below 2^24).
    Floats best = fill(-__builtin_inff()), best_at = zeros(), poison = zeros();
    Floats at = lane_numbers();
    int64_t i = 0;
    for (; i + kLanes <= a.columns; i += kLanes) {
        const Floats value = D::load_lanes(x + i);
        const Mask is_better = greater(value, best);
        best = select(is_better, value, best);
        best_at = select(is_better, at, best_at);
        poison = fma(value, zeros(), poison);  // becomes NaN at the first number that is not finite
        at = add(at, fill(kLanes));
    }
    float values[kLanes], columns[kLanes];
    store(values, best);
    store(columns, best_at);
    float largest = values[0], column = columns[0];
    for (int lane = 1; lane < kLanes; ++lane)
        if (values[lane] > largest || (values[lane] == largest && columns[lane] < column)) {
            largest = values[lane];
            column = columns[lane];
        }
    int64_t index = static_cast<int64_t>(column), first_nan = -1;
    bool is_finite = sum_of(poison) == 0;
    for (int64_t j = is_finite ? i : 0; j < a.columns; ++j) {
        float lane[kLanes];
        store(lane, load_some<D>(x + j, 1));
        is_finite &= std::fabs(lane[0]) <= 3.4028235e38f;
        if (lane[0] != lane[0] && first_nan < 0) first_nan = j;
        if (j >= i && lane[0] > largest) {
            largest = lane[0];
            index = j;
        }
    }
    a.index[row] = first_nan < 0 ? index : first_nan;
    a.is_finite[row] = is_finite;
}

void argmax(const Argmax& a, int64_t first_row, int64_t last_row) {
    with_dtype(a.dtype, [&](auto dtype) {
        for (int64_t row = first_row; row < last_row; ++row) argmax_row<decltype(dtype)>(a, row);
    });
}

}  // namespace
}  // namespace minedraft
