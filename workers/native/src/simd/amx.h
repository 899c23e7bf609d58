// Intel's AMX: eight tiles of sixteen rows of 64 bytes, and their product.
//
// By assembler, not by the compiler's intrinsics: those of gcc 12 do not say what memory they read.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "avx512.h"

namespace minedraft {
namespace {

// As the instruction reads it: rows of each tile, and their bytes.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t num_rows, int64_t bytes = 64) {
        row_bytes[tile] = static_cast<uint16_t>(bytes);
        rows[tile] = static_cast<uint8_t>(num_rows);
    }
};

// From here to `release_tiles` a thread has tiles; then the system need not save them.
MINEDRAFT_INLINE void configure_tiles(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" : : "m"(config)); }
MINEDRAFT_INLINE void release_tiles() { __asm__ volatile("tilerelease"); }

template <int Tile>
MINEDRAFT_INLINE void zero_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
// Rows are `stride` bytes apart.
template <int Tile>
MINEDRAFT_INLINE void load_tile(const void* p, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(Tile) : "memory");
}
// The same for what is not wanted again soon: it should not push out of the first-level cache what is.
template <int Tile>
MINEDRAFT_INLINE void load_tile_once(const void* p, int64_t stride) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
MINEDRAFT_INLINE void store_tile(void* p, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(Tile) : "memory");
}
// Sums, float32, += X W: rows of X hold pairs of bfloat16, and row k of W the k-th pair of each column.
template <int Sums, int X, int W>
MINEDRAFT_INLINE void multiply_tile() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(X), "i"(W));
}

// Into the first-level cache, or the second one. gcc drops a loop of its own intrinsic as if it did nothing.
MINEDRAFT_INLINE void fetch_near(const uint8_t* p) { __asm__ volatile("prefetcht0 %0" : : "m"(*p)); }
MINEDRAFT_INLINE void fetch_far(const uint8_t* p) { __asm__ volatile("prefetcht1 %0" : : "m"(*p)); }

// Copies past the caches, by whole lines: `to` begins with one. `finish_copies` comes before another thread reads it.
inline void copy_past_caches(uint8_t* to, const uint8_t* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
}
inline void finish_copies() { _mm_sfence(); }

// `store_bfloat16` of 32 numbers: mostly a whole line of the cache.
inline void store_panel(uint16_t* p, const float* x) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(load(x + kLanes), load(x)));
}

}  // namespace
}  // namespace minedraft
