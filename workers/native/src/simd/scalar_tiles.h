// AMX's tiles in plain C++, number by number. The reference for tests.
//
// A product rounds as Intel's manual has it, and as the instruction was found to do: the products of the even
// inputs, and those of the odd ones, are summed from zero in the order of the inputs, each with one rounding (a
// fused multiply-add); then both sums are added, and that to the tile. Subnormal numbers are taken as zero.
#pragma once

#include "scalar.h"

namespace minedraft {
namespace {

struct TileConfig {
    int64_t rows[8] = {}, bytes[8] = {};

    void set(int tile, int64_t num_rows, int64_t row_bytes = 64) {
        rows[tile] = num_rows;
        bytes[tile] = row_bytes;
    }
};

struct Tiles {
    TileConfig config;
    uint8_t at[8][16][64];
};
thread_local Tiles tiles;

inline void configure_tiles(const TileConfig& config) { tiles = Tiles{config, {}}; }
inline void release_tiles() { tiles = Tiles{}; }

template <int Tile>
inline void zero_tile() {
    std::memset(tiles.at[Tile], 0, sizeof tiles.at[Tile]);
}
template <int Tile>
inline void load_tile(const void* p, int64_t stride) {
    for (int64_t r = 0; r < tiles.config.rows[Tile]; ++r)
        std::memcpy(tiles.at[Tile][r], static_cast<const uint8_t*>(p) + r * stride, tiles.config.bytes[Tile]);
}
template <int Tile>
inline void load_tile_once(const void* p, int64_t stride) {
    load_tile<Tile>(p, stride);
}
template <int Tile>
inline void store_tile(void* p, int64_t stride) {
    for (int64_t r = 0; r < tiles.config.rows[Tile]; ++r)
        std::memcpy(static_cast<uint8_t*>(p) + r * stride, tiles.at[Tile][r], tiles.config.bytes[Tile]);
}
template <int Sums, int X, int W>
inline void multiply_tile() {
    const auto term = [](uint32_t x, uint32_t w, float sum) {
        const float left = without_subnormals(as_float(x)), right = without_subnormals(as_float(w));
        return without_subnormals(std::fmaf(left, right, sum));
    };
    for (int64_t r = 0; r < tiles.config.rows[Sums]; ++r) {
        uint32_t x[16];
        std::memcpy(x, tiles.at[X][r], sizeof x);
        float sums[16];
        std::memcpy(sums, tiles.at[Sums][r], sizeof sums);
        for (int column = 0; column < 16; ++column) {
            float even = 0, odd = 0;
            for (int64_t k = 0; k < tiles.config.bytes[X] / 4; ++k) {
                uint32_t w;
                std::memcpy(&w, tiles.at[W][k] + 4 * column, sizeof w);
                even = term(x[k] << 16, w << 16, even);
                odd = term(x[k] & 0xffff0000u, w & 0xffff0000u, odd);
            }
            sums[column] = without_subnormals(without_subnormals(sums[column]) + without_subnormals(even + odd));
        }
        std::memcpy(tiles.at[Sums][r], sums, sizeof sums);
    }
}

inline void fetch_near(const uint8_t*) {}
inline void fetch_far(const uint8_t*) {}

inline void copy_past_caches(uint8_t* to, const uint8_t* from, int64_t bytes) { std::memcpy(to, from, bytes); }
inline void finish_copies() {}

inline void store_panel(uint16_t* p, const float* x) {
    store_bfloat16(p, load(x));
    store_bfloat16(p + kLanes, load(x + kLanes));
}

}  // namespace
}  // namespace minedraft
