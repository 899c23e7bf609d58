// Linear layers of bfloat16 by matrix tiles: sixteen columns, sixteen rows of x and 32 inputs in one instruction.
//
// A tile of sums takes its products in steps of 32 inputs, from the first to the last, whatever else is computed
// beside it. So a row's result depends on its x and the weights alone here too: not on the rows that share its
// tile, on their number, or on whether a sum waits in memory between two pieces of the inputs.
//
// Rows of x are cut into tiles of one size; the last tile begins early where it would not be full, and computes
// some rows a second time. x is laid out tile after tile, [tiles][in/32][rows of a tile][32], filled up with zeros.
// How many tiles share a pass over the weights depends on what bounds it:
//   1, 2 tiles   two strips at once, each a stream from memory: the time is that of reading
//   to 6 tiles   strip after strip, with a tile of sums for each: the weights are still read once
//   more         two tiles and two strips at a time, which loads least for a product; the weights come from the
//                core's cache, where the passes before have fetched them
#pragma once

#include <type_traits>

#include "linear.h"

namespace minedraft {
namespace {

constexpr int64_t kTileRows = 16, kTileInputs = 2 * kTileSteps, kTileBytes = 1024;
constexpr int kMostSums = 6;
// Rows that are multiplied together: their sums and a piece of their x stay in the second-level cache.
constexpr int64_t kMostTiles = 32;
constexpr int64_t kNearBytes = 1 << 20, kPieceBytes = 1 << 19, kSumBytes = 1 << 19;
constexpr int64_t kStreamedPanels = 16;
// Between what is multiplied and what is fetched. Just ahead of use, in order, memory's own prefetcher does best.
constexpr int64_t kTilesFetchAhead = 512;

struct RowTiles {
    int64_t rows, count, size;

    explicit RowTiles(int64_t num_rows)
        : rows(num_rows), count((num_rows + kTileRows - 1) / kTileRows), size(count ? (rows + count - 1) / count : 0) {}
    int64_t begin(int64_t tile) const { return tile * size < rows - size ? tile * size : rows - size; }
    int64_t step_bytes() const { return size * 2 * kTileInputs; }
};

inline int64_t num_tile_steps(const Linear& a) { return (a.in + kTileInputs - 1) / kTileInputs; }

inline size_t tiled_x_bytes(const Linear& a) {
    const RowTiles tiles(a.rows);
    return tiles.count * num_tile_steps(a) * tiles.step_bytes();
}

void tile_x(const Linear& a, int64_t first_step, int64_t last_step) {
    const RowTiles tiles(a.rows);
    const int64_t steps = num_tile_steps(a);
    for (int64_t t = 0; t < tiles.count; ++t)
        for (int64_t r = 0; r < tiles.size; ++r) {
            const auto* x = static_cast<const uint16_t*>(a.x) + (tiles.begin(t) + r) * a.x_stride;
            uint8_t* to = a.packed_x + t * steps * tiles.step_bytes() + r * 2 * kTileInputs;
            for (int64_t s = first_step; s < last_step; ++s) {
                const int64_t left = a.in - s * kTileInputs, count = left < kTileInputs ? left : kTileInputs;
                uint8_t* at = to + s * tiles.step_bytes();
                if (count == kTileInputs) {
                    std::memcpy(at, x + s * kTileInputs, 2 * kTileInputs);
                } else {
                    std::memset(at, 0, 2 * kTileInputs);
                    std::memcpy(at, x + s * kTileInputs, 2 * count);
                }
            }
        }
}

template <int I, int N, class F>
MINEDRAFT_INLINE void repeat(F f) {
    if constexpr (I < N) {
        f(std::integral_constant<int, I>{});
        repeat<I + 1, N>(f);
    }
}

// Which tile is what where `X` tiles of x meet `S` strips. Sums come first, row after row.
template <int X, int S>
struct TileUse {
    static_assert(X * S <= kMostSums && (S == 1 || X * S <= 4));
    static constexpr int sum(int x, int strip) { return x * S + strip; }
    static constexpr int x(int i) { return S == 2 && i == 1 ? 4 : 6; }
    static constexpr int weight(int strip) { return strip == 1 ? 5 : 7; }

    static void configure(int64_t rows) {
        TileConfig config;
        for (int i = 0; i < 8; ++i) config.set(i, rows);
        for (int i = 0; i < S; ++i) config.set(weight(i), kTileRows);
        configure_tiles(config);
    }
};

// Weights are fetched step by step while others are multiplied: those just ahead; or of the next piece, a part of
// each step in each pass; or none.
struct FetchNear {
    template <int Part>
    MINEDRAFT_INLINE void fetch(const uint8_t* weight, int) {
#pragma GCC unroll 8
        for (int64_t i = Part * 512; i < Part * 512 + 512; i += 64) fetch_near(weight + kTilesFetchAhead + i);
    }
    MINEDRAFT_INLINE void advance() {}
};
struct FetchNext {
    const uint8_t* at[2];
    int64_t lines;

    template <int Part>
    MINEDRAFT_INLINE void fetch(const uint8_t*, int strip) {
        if constexpr (Part == 0)
            for (int64_t i = 0; i < lines; ++i) fetch_far(at[strip] + 64 * i);
    }
    MINEDRAFT_INLINE void advance() {
        at[0] += kTileBytes;
        at[1] += kTileBytes;
    }
};
struct FetchNothing {
    template <int>
    MINEDRAFT_INLINE void fetch(const uint8_t*, int) {}
    MINEDRAFT_INLINE void advance() {}
};

// Rounded by the instruction for it, which takes subnormal numbers as zero, as the products do.
struct SumsAsBfloat16 : Bfloat16 {
    static void store_lanes(uint16_t* p, Floats x) { store_for_dot(p, x); }
};

// One pass over a piece of the inputs: its x and weights, and where its sums go, or come from too.
struct TilePass {
    const uint8_t* x;
    int64_t x_step, x_tile;  // bytes from step to step, from tile to tile
    const uint8_t* weight;
    int64_t strip_bytes, steps, rows;
    float* sums;  // [X * rows][S * kStrip]
    bool resumes;
};

template <int X, int S, class Fetch>
void multiply_tiles(const TilePass& p, Fetch fetch) {
    using Use = TileUse<X, S>;
    constexpr int64_t kSumStride = S * kStrip * sizeof(float);
    const auto sums_at = [&](int x, int strip) __attribute__((always_inline)) {
        return p.sums + x * p.rows * S * kStrip + strip * kStrip;
    };
    repeat<0, X * S>([&](auto i) __attribute__((always_inline)) {
        if (p.resumes)
            load_tile<Use::sum(i / S, i % S)>(sums_at(i / S, i % S), kSumStride);
        else
            zero_tile<Use::sum(i / S, i % S)>();
    });
    const uint8_t *x = p.x, *weight = p.weight;
    const int64_t x_step = p.x_step, x_tile = p.x_tile, strip_bytes = p.strip_bytes;
    for (int64_t step = 0; step < p.steps; ++step) {
        fetch.template fetch<0>(weight, 0);
        if constexpr (S == 2) fetch.template fetch<1>(weight, 0);
        load_tile<Use::weight(0)>(weight, 64);
        load_tile<Use::x(0)>(x, 64);
        multiply_tile<Use::sum(0, 0), Use::x(0), Use::weight(0)>();
        if constexpr (S == 1) fetch.template fetch<1>(weight, 0);
        repeat<1, X>([&](auto i) __attribute__((always_inline)) {
            load_tile<Use::x(i)>(x + i * x_tile, 64);
            multiply_tile<Use::sum(i, 0), Use::x(i), Use::weight(0)>();
        });
        if constexpr (S == 2) {
            fetch.template fetch<0>(weight + strip_bytes, 1);
            fetch.template fetch<1>(weight + strip_bytes, 1);
            load_tile<Use::weight(1)>(weight + strip_bytes, 64);
            repeat<0, X>([&](auto i) __attribute__((always_inline)) {
                multiply_tile<Use::sum(i, 1), Use::x(i), Use::weight(1)>();
            });
        }
        fetch.advance();
        x += x_step;
        weight += kTileBytes;
    }
    repeat<0, X * S>([&](auto i) __attribute__((always_inline)) {
        store_tile<Use::sum(i / S, i % S)>(sums_at(i / S, i % S), kSumStride);
    });
}

// How many steps of the inputs, and then how many panels, are gone through together. Where weights are streamed, that
// is for the sake of y: its rows lie in other pages of memory each, and to go to all of them after every panel disturbs
// the stream. Where they are not, a long x is cut, so that a piece that is used again and again stays in the cache.
struct TileCut {
    int64_t rows, steps, panels, sum_bytes, y_bytes;

    TileCut(const Linear& a, const RowTiles& tiles) : steps(num_tile_steps(a)), panels(1), y_bytes(0) {
        const int64_t count = tiles.count < kMostTiles ? tiles.count : kMostTiles, x_step = count * tiles.step_bytes();
        rows = count * tiles.size;
        sum_bytes = rows * kPanel * sizeof(float);
        if (count <= kMostSums) {
            panels = kStreamedPanels;
            y_bytes = rows * panels * kPanel * (a.y_dtype == kFloat32 ? 4 : 2);
        } else if (steps * x_step > kNearBytes) {
            steps = kPieceBytes / x_step;
            panels = kSumBytes / sum_bytes;
            sum_bytes *= panels;
        }
    }
};

class TileMultiplier {
  public:
    // `scratch` is of `scratch_bytes`.
    TileMultiplier(const Linear& args, uint8_t* scratch)
        : a(args), tiles(args.rows), steps(num_tile_steps(args)), cut(args, tiles),
          sums(reinterpret_cast<float*>(scratch)), written(scratch + cut.sum_bytes) {}

    static size_t scratch_bytes(const Linear& a) {
        const TileCut cut(a, RowTiles(a.rows));
        return cut.sum_bytes + cut.y_bytes;
    }

    void multiply(int64_t first_panel, int64_t last_panel) {
        if (!tiles.count || first_panel >= last_panel) return;
        if (tiles.count > 2 && is_streaming())
            TileUse<1, 1>::configure(tiles.size);
        else
            TileUse<2, 2>::configure(tiles.size);
        for (first_tile = 0; first_tile < tiles.count; first_tile += kMostTiles) {
            num_tiles = tiles.count - first_tile < kMostTiles ? tiles.count - first_tile : kMostTiles;
            for (first = first_panel; first < last_panel; first = last) {
                last = first + cut.panels < last_panel ? first + cut.panels : last_panel;
                for (int64_t step = 0; step < steps; step += cut.steps)
                    for (int64_t panel = first; panel < last; ++panel) multiply_piece(panel, step);
                if (is_streaming()) copy_to_y();
            }
        }
        release_tiles();
    }

  private:
    const Linear& a;
    const RowTiles tiles;
    const int64_t steps;
    const TileCut cut;
    float* sums;       // [panels where the inputs are cut][tiles][rows of a tile][kPanel], or of one strip
    uint8_t* written;  // where weights are streamed: [rows][panels][kPanel], as y has them
    // The tiles and panels at hand.
    int64_t first_tile = 0, num_tiles = 0, first = 0, last = 0;

    // Whether weights are read once for all rows.
    bool is_streaming() const { return tiles.count <= kMostSums; }
    int64_t strip_bytes() const { return steps * kTileBytes; }
    const uint8_t* weight_at(int64_t panel, int64_t step) const {
        return a.weight + 2 * panel * strip_bytes() + step * kTileBytes;
    }

    void multiply_piece(int64_t panel, int64_t step) const {
        if (num_tiles <= 2)
            multiply_tiles_of(panel, step, 0, FetchNear{});
        else if (is_streaming())
            multiply_strips(panel);
        else
            multiply_pairs(panel, step);
    }

    TilePass pass_of(int64_t panel, int64_t step, int64_t tile) const {
        const int64_t x_tile = steps * tiles.step_bytes(), left = steps - step;
        const int64_t panel_sums = cut.steps < steps ? (panel - first) * cut.rows * kPanel : 0;
        return {a.packed_x + (first_tile + tile) * x_tile + step * tiles.step_bytes(),
                tiles.step_bytes(),
                x_tile,
                weight_at(panel, step),
                strip_bytes(),
                left < cut.steps ? left : cut.steps,
                tiles.size,
                sums + panel_sums + tile * tiles.size * kPanel,
                step > 0};
    }

    void multiply_strips(int64_t panel) const {
        TilePass pass = pass_of(panel, 0, 0);
        for (int64_t strip = 0; strip < 2; ++strip, pass.weight += strip_bytes()) {
            switch (num_tiles) {
                case 3: multiply_tiles<3, 1>(pass, FetchNear{}); break;
                case 4: multiply_tiles<4, 1>(pass, FetchNear{}); break;
                case 5: multiply_tiles<5, 1>(pass, FetchNear{}); break;
                default: multiply_tiles<6, 1>(pass, FetchNear{});
            }
            write(pass.sums, 0, num_tiles, 1, panel * kPanel + strip * kStrip);
        }
    }

    void multiply_pairs(int64_t panel, int64_t step) const {
        // The piece after this one; the last piece of all fetches what is no weight of this layer.
        const bool is_last = panel + 1 == last, goes_on = step + cut.steps < steps;
        const uint8_t* next =
            weight_at(is_last && goes_on ? first : panel + 1, is_last ? (goes_on ? step + cut.steps : 0) : step);
        const int64_t passes = (num_tiles + 1) / 2, lines = (kTileBytes / 64 + passes - 1) / passes;
        for (int64_t tile = 0; tile < num_tiles; tile += 2) {
            const int64_t line = tile / 2 * lines, left = kTileBytes / 64 - line;
            const uint8_t* at = next + 64 * line;
            multiply_tiles_of(panel, step, tile,
                              FetchNext{{at, at + strip_bytes()}, left < 0 ? 0 : left < lines ? left : lines});
        }
    }

    template <class Fetch>
    void multiply_tiles_of(int64_t panel, int64_t step, int64_t tile, Fetch fetch) const {
        const TilePass pass = pass_of(panel, step, tile);
        const int64_t width = num_tiles - tile < 2 ? 1 : 2;
        if (width == 2)
            multiply_tiles<2, 2>(pass, fetch);
        else
            multiply_tiles<1, 2>(pass, fetch);
        if (step + pass.steps == steps) write(pass.sums, tile, width, 2, panel * kPanel);
    }

    // The finished sums of `count` tiles from `tile` on, `strips` strips wide.
    void write(const float* from, int64_t tile, int64_t count, int64_t strips, int64_t column) const {
        const bool is_whole = strips == 2 && column + kPanel <= a.out && !a.bias;
        const int64_t width = a.y_dtype == kFloat32 ? 4 : 2, stride = is_streaming() ? cut.panels * kPanel : a.y_stride;
        for (int64_t i = tile; i < tile + count; ++i, from += tiles.size * strips * kStrip) {
            uint8_t* to = is_streaming() ? written + (tiles.begin(i) * stride + column - first * kPanel) * width
                                         : y_at(tiles.begin(first_tile + i), column);
            if (a.y_dtype == kFloat32)
                write_rows<Float32>(a, from, tiles.size, strips, column, to, stride);
            else if (is_whole)
                write_panel(from, reinterpret_cast<uint16_t*>(to), stride);
            else
                write_rows<SumsAsBfloat16>(a, from, tiles.size, strips, column, to, stride);
        }
    }

    void write_panel(const float* from, uint16_t* to, int64_t stride) const {
        for (int64_t r = 0; r < tiles.size; ++r, from += kPanel, to += stride) store_panel_for_dot(to, from);
    }

    uint8_t* y_at(int64_t row, int64_t column) const {
        return static_cast<uint8_t*>(a.y) + (row * a.y_stride + column) * (a.y_dtype == kFloat32 ? 4 : 2);
    }

    void copy_to_y() const {
        const int64_t width = a.y_dtype == kFloat32 ? 4 : 2, column = first * kPanel;
        const int64_t end = last * kPanel < a.out ? last * kPanel : a.out;
        for (int64_t r = 0; r < tiles.rows; ++r)
            std::memcpy(y_at(r, column), written + r * cut.panels * kPanel * width, (end - column) * width);
    }
};

namespace tiled {

// With another dtype, as without tiles.
size_t packed_x_bytes(const Linear& a) {
    return a.x_dtype == kBfloat16 ? tiled_x_bytes(a) : minedraft::packed_x_bytes(a);
}
size_t linear_scratch_bytes(const Linear& a) { return a.x_dtype == kBfloat16 ? TileMultiplier::scratch_bytes(a) : 0; }
void pack_x(const Linear& a, int64_t part, int64_t num_parts) {
    if (a.x_dtype != kBfloat16) return minedraft::pack_x(a, part, num_parts);
    const int64_t steps = num_tile_steps(a);
    tile_x(a, steps * part / num_parts, steps * (part + 1) / num_parts);
}
void linear(const Linear& a, int64_t first_panel, int64_t last_panel, uint8_t* scratch) {
    if (a.x_dtype != kBfloat16) return minedraft::linear(a, first_panel, last_panel, scratch);
    TileMultiplier(a, scratch).multiply(first_panel, last_panel);
}

}  // namespace tiled

}  // namespace
}  // namespace minedraft
