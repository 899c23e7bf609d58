// Rows of float32 or bfloat16 numbers, sixteen or fewer at a time; and the exponential function.
#pragma once

#include <cstring>

#include "kernels.h"

namespace minedraft {
namespace {

struct Float32 {
    using Type = float;
    static Floats load_lanes(const float* p) { return load(p); }
    static void store_lanes(float* p, Floats x) { store(p, x); }
    static Floats rounded(Floats x) { return x; }
};

struct Bfloat16 {
    using Type = uint16_t;
    static Floats load_lanes(const uint16_t* p) { return load_bfloat16(p); }
    static void store_lanes(uint16_t* p, Floats x) { store_bfloat16(p, x); }
    static Floats rounded(Floats x) { return round_to_bfloat16(x); }
};

// 0, 1, 2 and so on.
inline Floats lane_numbers() {
    static constexpr float kNumbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load(kNumbers);
}

// The first `count` lanes; the rest are zero.
template <class D>
inline Floats load_some(const typename D::Type* p, int64_t count) {
    if (count >= kLanes) return D::load_lanes(p);
    typename D::Type lanes[kLanes] = {};
    std::memcpy(lanes, p, count * sizeof *p);
    return D::load_lanes(lanes);
}

template <class D>
inline void store_some(typename D::Type* p, Floats x, int64_t count) {
    if (count >= kLanes) return D::store_lanes(p, x);
    typename D::Type lanes[kLanes];
    D::store_lanes(lanes, x);
    std::memcpy(p, lanes, count * sizeof *p);
}

template <class D>
inline const typename D::Type* row_of(const void* base, int64_t row, int64_t stride) {
    return static_cast<const typename D::Type*>(base) + row * stride;
}
template <class D>
inline typename D::Type* row_of(void* base, int64_t row, int64_t stride) {
    return static_cast<typename D::Type*>(base) + row * stride;
}

// The sums of `rows` rows and `strips` strips from `first_column` on, row after row, to y: that is where the first of
// them goes, in D, and the rows there are `stride` numbers apart.
template <class D>
void write_rows(const Linear& a, const float* sums, int64_t rows, int64_t strips, int64_t first_column, void* y,
                int64_t stride) {
    auto* to = static_cast<typename D::Type*>(y);
    const float* bias = a.bias ? a.bias + first_column : nullptr;
    if (first_column + strips * kStrip <= a.out) {
        for (int64_t r = 0; r < rows; ++r, to += stride)
            for (int64_t i = 0; i < strips * kStrip; i += kLanes, sums += kLanes)
                D::store_lanes(to + i, bias ? add(load(sums), load(bias + i)) : load(sums));
        return;
    }
    for (int64_t r = 0; r < rows; ++r, to += stride, sums += strips * kStrip)
        for (int64_t i = 0; i < strips * kStrip; i += kLanes) {
            const int64_t count = a.out - first_column - i;
            if (count <= 0) break;
            const Floats value = load(sums + i);
            store_some<D>(to + i, bias ? add(value, load_some<Float32>(bias + i, count)) : value, count);
        }
}

// e to the power of x, to about 1e-7 of the result. Exactly 0 below -104 (AVX2: -88), infinity above 88.8
// (AVX2: 88.4); NaN stays NaN.
inline Floats exponential(Floats x) {
    // x = n ln 2 + rest; the arguments of min and max are in the order that lets NaN through.
    x = max(fill(-110.0f), min(fill(89.0f), x));
    const Floats n = round_even(mul(x, fill(1.44269504f)));
    const Floats rest = fma(n, fill(2.12194440e-4f), fma(n, fill(-0.693359375f), x));
    Floats power = fill(1.9875691500e-4f);
    power = fma(power, rest, fill(1.3981999507e-3f));
    power = fma(power, rest, fill(8.3334519073e-3f));
    power = fma(power, rest, fill(4.1665795894e-2f));
    power = fma(power, rest, fill(1.6666665459e-1f));
    power = fma(power, rest, fill(5.0000001201e-1f));
    power = fma(mul(power, rest), rest, add(rest, fill(1.0f)));
    return times_power_of_two(power, n);
}

// 2 to the power of x, for x <= 0, to about 1e-7 of the result; 0 below -126. NaN stays NaN. A subnormal result, or one
// that becomes 0 by itself, would take Intel's cores as long as fifty others, and every hidden token has one.
inline Floats power_of_two(Floats x) {
    const Mask is_none = greater(fill(-126.0f), x);
    x = max(fill(-126.0f), x);
    const Floats n = round_even(x), rest = sub(x, n);
    Floats power = fill(1.5461452e-4f);
    power = fma(power, rest, fill(1.3390873e-3f));
    power = fma(power, rest, fill(9.6180569e-3f));
    power = fma(power, rest, fill(5.5503570e-2f));
    power = fma(power, rest, fill(2.4022651e-1f));
    power = fma(power, rest, fill(6.9314718e-1f));
    return select(is_none, zeros(), times_power_of_two(fma(power, rest, fill(1.0f)), n));
}

}  // namespace
}  // namespace minedraft
