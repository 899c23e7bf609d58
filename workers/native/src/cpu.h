// Which instruction sets this CPU and its operating system have.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace minedraft {

enum Isa { kScalar = 0, kScalarTiles = 1, kAvx2 = 2, kAvx512 = 3, kAvx512Bf16 = 4, kAmxBf16 = 5 };
enum Support { kLacks = 0, kHas = 1, kRefused = 2 };  // kRefused: the CPU has it, the system does not let us use it

#if defined(__x86_64__)

// The registers' state that the operating system saves: bits 1, 2 for AVX, 5 to 7 for AVX-512, 17, 18 for AMX.
inline uint64_t saved_state() {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives tiles to a process that asks for them, and then to all its threads, unless one of them has set up a
// stack for signals on which their state has no room.
inline bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    static const bool is_granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return is_granted;
#else
    return false;
#endif
}

inline bool has_vectors(Isa isa) {
    if (isa <= kScalarTiles) return true;
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

inline Support support_of(Isa isa) {
    if (!has_vectors(isa)) return kLacks;
    if (isa != kAmxBf16) return kHas;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return kLacks;
    const bool has_bf16 = d >> 22 & 1, has_tile = d >> 24 & 1;
    if (!has_bf16 || !has_tile) return kLacks;
    return (saved_state() & 0x60000) == 0x60000 && may_use_tiles() ? kHas : kRefused;
}

#else

inline Support support_of(Isa isa) { return isa <= kScalarTiles ? kHas : kLacks; }

#endif

}  // namespace minedraft
