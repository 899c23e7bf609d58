// AVX-512: sixteen float32 lanes. With MINEDRAFT_DOT also avx512_bf16's product of pairs.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace minedraft {
namespace {

using Floats = __m512;
using Pairs = __m512i;  // sixteen pairs of bfloat16, the lower one in the lower half
using Mask = __mmask16;

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
constexpr int kMaxRows = 12;  // rows of one tile

#ifdef MINEDRAFT_DOT
constexpr bool kHasDot = true;
inline Floats dot(Floats sum, Pairs a, Pairs b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
#else
constexpr bool kHasDot = false;
#endif

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats fill(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// Where a lane is NaN, the second argument is the result.
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Mask greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Floats select(Mask mask, Floats yes, Floats no) { return _mm512_mask_blend_ps(mask, no, yes); }
inline Floats round_even(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// x times 2 to the power of whole n.
inline Floats times_power_of_two(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
// Lanes i and i + 8 first, then i and i + 4, and so on.
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }

inline Pairs load_pairs(const void* p) { return _mm512_loadu_si512(p); }
inline Pairs fill_pair(const void* p) { return _mm512_set1_epi32(*static_cast<const int32_t*>(p)); }
inline Floats low(Pairs x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
inline Floats high(Pairs x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536))); }

inline Floats load_bfloat16(const uint16_t* p) {
    return low(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline Floats load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// To the nearest, ties to even; a NaN stays one. With the instruction for it subnormal numbers become zero, as which
// `dot` takes them anyway.
#ifdef MINEDRAFT_DOT
inline __m256i to_bfloat16(Floats x) { return (__m256i)_mm512_cvtneps_pbh(x); }
#else
inline __m256i to_bfloat16(Floats x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i all = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(all, 16));
}
#endif
inline void store_bfloat16(uint16_t* p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bfloat16(x));
}
inline Floats round_to_bfloat16(Floats x) { return low(_mm512_cvtepu16_epi32(to_bfloat16(x))); }

// To the second-level cache: what is fetched a chunk ahead would fill the first, and few lines can be on their way
// there. On Zen 4 attention takes two thirds of the time that it takes with the first, sixteen rows a sixth less.
#ifdef MINEDRAFT_TILES
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
#else
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
#endif

}  // namespace
}  // namespace minedraft
