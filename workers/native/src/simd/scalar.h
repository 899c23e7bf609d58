// Plain C++ in the shape of AVX-512 with avx512_bf16: sixteen lanes, one by one. The reference for tests.
//
// `dot` rounds as the instruction does: the products of a pair are added one after the other, the
// higher one first, each with one rounding (a fused multiply-add), subnormal numbers taken as zero.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace minedraft {
namespace {

constexpr int kLanes = 16;
constexpr int kRegisters = 16;
constexpr int kMaxRows = 4;
constexpr bool kHasDot = true;

struct Floats {
    float lane[kLanes];
};
struct Pairs {
    uint32_t lane[kLanes];
};
struct Mask {
    bool lane[kLanes];
};

inline float as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline uint32_t as_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float without_subnormals(float x) {
    return (as_bits(x) & 0x7f800000u) == 0 ? as_float(as_bits(x) & 0x80000000u) : x;
}

template <class F>
inline Floats each(F f) {
    Floats out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = f(i);
    return out;
}

inline Floats zeros() { return each([](int) { return 0.0f; }); }
inline Floats fill(float x) { return each([=](int) { return x; }); }
inline Floats load(const float* p) { return each([=](int i) { return p[i]; }); }
inline void store(float* p, Floats x) { std::memcpy(p, x.lane, sizeof x.lane); }
inline Floats add(Floats a, Floats b) { return each([&](int i) { return a.lane[i] + b.lane[i]; }); }
inline Floats sub(Floats a, Floats b) { return each([&](int i) { return a.lane[i] - b.lane[i]; }); }
inline Floats mul(Floats a, Floats b) { return each([&](int i) { return a.lane[i] * b.lane[i]; }); }
inline Floats div(Floats a, Floats b) { return each([&](int i) { return a.lane[i] / b.lane[i]; }); }
inline Floats fma(Floats a, Floats b, Floats c) {
    return each([&](int i) { return std::fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
// Where a lane is NaN, the second argument is the result.
inline Floats max(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Floats min(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Mask greater(Floats a, Floats b) {
    Mask mask;
    for (int i = 0; i < kLanes; ++i) mask.lane[i] = a.lane[i] > b.lane[i];
    return mask;
}
inline Floats select(Mask mask, Floats yes, Floats no) {
    return each([&](int i) { return mask.lane[i] ? yes.lane[i] : no.lane[i]; });
}
inline Floats round_even(Floats x) { return each([&](int i) { return std::nearbyintf(x.lane[i]); }); }
// x times 2 to the power of whole n.
inline Floats times_power_of_two(Floats x, Floats n) {
    return each([&](int i) {
        const bool is_whole = n.lane[i] >= -512.0f && n.lane[i] <= 512.0f;
        return is_whole ? std::scalbnf(x.lane[i], static_cast<int>(n.lane[i])) : x.lane[i] + n.lane[i];
    });
}
// Lanes i and i + 8 first, then i and i + 4, and so on.
template <class F>
inline float fold(Floats x, F f) {
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; ++i) x.lane[i] = f(x.lane[i], x.lane[i + width]);
    return x.lane[0];
}
inline float sum_of(Floats x) {
    return fold(x, [](float a, float b) { return a + b; });
}
inline float largest_of(Floats x) {
    return fold(x, [](float a, float b) { return a > b ? a : b; });
}

inline Pairs load_pairs(const void* p) {
    Pairs x;
    std::memcpy(x.lane, p, sizeof x.lane);
    return x;
}
inline Pairs fill_pair(const void* p) {
    Pairs x;
    for (int i = 0; i < kLanes; ++i) std::memcpy(&x.lane[i], p, sizeof x.lane[i]);
    return x;
}
inline Floats low(Pairs x) { return each([&](int i) { return as_float(x.lane[i] << 16); }); }
inline Floats high(Pairs x) { return each([&](int i) { return as_float(x.lane[i] & 0xffff0000u); }); }

inline Floats dot(Floats sum, Pairs a, Pairs b) {
    return each([&](int i) {
        const auto term = [&](uint32_t left, uint32_t right, float so_far) {
            const float x = without_subnormals(as_float(left)), y = without_subnormals(as_float(right));
            return without_subnormals(std::fmaf(x, y, without_subnormals(so_far)));
        };
        const float upper = term(a.lane[i] & 0xffff0000u, b.lane[i] & 0xffff0000u, sum.lane[i]);
        return term(a.lane[i] << 16, b.lane[i] << 16, upper);
    });
}

inline float from_float16(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 1023u;
    if (exponent == 31) return as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent) return as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -small : small;
}
inline Floats load_float16(const uint16_t* p) { return each([=](int i) { return from_float16(p[i]); }); }
inline Floats load_bfloat16(const uint16_t* p) {
    return each([=](int i) { return as_float(static_cast<uint32_t>(p[i]) << 16); });
}
// To the nearest, ties to even; a NaN stays one, and a subnormal number becomes zero.
inline uint16_t to_bfloat16(float x) {
    const uint32_t bits = as_bits(without_subnormals(x));
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void store_bfloat16(uint16_t* p, Floats x) {
    for (int i = 0; i < kLanes; ++i) p[i] = to_bfloat16(x.lane[i]);
}
inline Floats round_to_bfloat16(Floats x) {
    return each([&](int i) { return as_float(static_cast<uint32_t>(to_bfloat16(x.lane[i])) << 16); });
}

inline void prefetch(const void*) {}

}  // namespace
}  // namespace minedraft
