// What choosing tokens needs of an instruction set beside ../simd_*.h: comparisons as bits, and hashed noise.
#pragma once

#include "../kernels.h"

namespace minedraft {
namespace {
namespace choosing {

constexpr uint32_t kNoiseMultiplier = 0x9E3779B1u;

// at_least: bit i says a[i] >= b[i]. unordered: that a[i] or b[i] is a NaN.
// noise_steps: a lower bound of log2(noise bits + 1/2) in units of 2^-23, see `gumbel_bound` in
// minedraft_workers.sampling.randomness; `low` and `high` are the halves of a position's key.
#if MINEDRAFT_ISA <= 1
inline uint32_t at_least(Floats a, Floats b) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(a.lane[i] >= b.lane[i]) << i;
    return bits;
}
inline uint32_t unordered(Floats a, Floats b) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i)
        bits |= static_cast<uint32_t>(a.lane[i] != a.lane[i] || b.lane[i] != b.lane[i]) << i;
    return bits;
}
#elif MINEDRAFT_ISA == 2
inline uint32_t at_least(Floats a, Floats b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
inline uint32_t unordered(Floats a, Floats b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)));
}
#else
inline uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline uint32_t unordered(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
#endif

// The values whose bit is set, one after the other, and likewise their columns, of which the first is `column`.
// Up to kLanes numbers beyond them may be overwritten; `to` may be `p` or lie before it.
#if MINEDRAFT_ISA >= 3
inline void pick(const float* p, uint32_t bits, float* to) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), _mm512_loadu_ps(p)));
}
inline void pick_columns(int64_t column, uint32_t bits, int32_t* to) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i columns = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(column)));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), columns));
}
inline void pick(const int32_t* p, uint32_t bits, int32_t* to) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(p)));
}
#else
template <class T>
inline void pick(const T* p, uint32_t bits, T* to) {
    for (; bits; bits &= bits - 1) *to++ = p[__builtin_ctz(bits)];
}
inline void pick_columns(int64_t column, uint32_t bits, int32_t* to) {
    for (; bits; bits &= bits - 1) *to++ = static_cast<int32_t>(column + __builtin_ctz(bits));
}
#endif

// The noise of one token, 0..2^31-1: `TokenNoise.bits` there.
inline int32_t noise_of(int32_t hash, uint64_t key) {
    uint32_t x = (static_cast<uint32_t>(hash) ^ static_cast<uint32_t>(key)) * kNoiseMultiplier;
    x += static_cast<uint32_t>(static_cast<int32_t>(x) >> 16);
    return static_cast<int32_t>(x * (static_cast<uint32_t>(key >> 32) | 1u) & 0x7fffffffu);
}

#if MINEDRAFT_ISA <= 1
inline Floats noise_steps(const int32_t* hashes, uint64_t key) {
    return each([&](int i) {
        return static_cast<float>(static_cast<int32_t>(as_bits(static_cast<float>(noise_of(hashes[i], key)))));
    });
}
#elif MINEDRAFT_ISA == 2
inline Floats noise_steps(const int32_t* hashes, uint64_t key) {
    const __m256i low = _mm256_set1_epi32(static_cast<int32_t>(key));
    const __m256i high = _mm256_set1_epi32(static_cast<int32_t>(key >> 32) | 1);
    __m256i x = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(hashes)), low);
    x = _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<int32_t>(kNoiseMultiplier)));
    x = _mm256_mullo_epi32(_mm256_add_epi32(x, _mm256_srai_epi32(x, 16)), high);
    const Floats bits = _mm256_cvtepi32_ps(_mm256_and_si256(x, _mm256_set1_epi32(0x7fffffff)));
    return _mm256_cvtepi32_ps(_mm256_castps_si256(bits));
}
#else
inline Floats noise_steps(const int32_t* hashes, uint64_t key) {
    const __m512i low = _mm512_set1_epi32(static_cast<int32_t>(key));
    const __m512i high = _mm512_set1_epi32(static_cast<int32_t>(key >> 32) | 1);
    __m512i x = _mm512_xor_si512(_mm512_loadu_si512(hashes), low);
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int32_t>(kNoiseMultiplier)));
    x = _mm512_mullo_epi32(_mm512_add_epi32(x, _mm512_srai_epi32(x, 16)), high);
    const Floats bits = _mm512_cvtepi32_ps(_mm512_and_si512(x, _mm512_set1_epi32(0x7fffffff)));
    return _mm512_cvtepi32_ps(_mm512_castps_si512(bits));
}
#endif

}  // namespace choosing
}  // namespace
}  // namespace minedraft
