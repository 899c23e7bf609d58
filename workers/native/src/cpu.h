// Which instruction sets this CPU and its operating system have.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace minedraft {

enum Isa { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

#if defined(__x86_64__)

// The registers' state that the operating system saves: bits 1, 2 for AVX, 5 to 7 for AVX-512.
inline uint64_t saved_state() {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

inline bool has(Isa isa) {
    if (isa == kScalar) return true;
    unsigned a, b, c, d, b7, d7, a71;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    const bool has_xsave = c >> 27 & 1, has_fma = c >> 12 & 1, has_f16c = c >> 29 & 1, has_avx = c >> 28 & 1;
    if (!has_xsave || !has_fma || !has_f16c || !has_avx || (saved_state() & 0x6) != 0x6) return false;
    unsigned c7;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) || !(b7 >> 5 & 1)) return false;
    if (isa == kAvx2) return true;
    const bool has_f = b7 >> 16 & 1, has_dq = b7 >> 17 & 1, has_bw = b7 >> 30 & 1, has_vl = b7 >> 31 & 1;
    if (!has_f || !has_dq || !has_bw || !has_vl || (saved_state() & 0xe6) != 0xe6) return false;
    if (isa == kAvx512) return true;
    return a >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d) && (a71 >> 5 & 1);
}

#else

inline bool has(Isa isa) { return isa == kScalar; }

#endif

}  // namespace minedraft
