// Linear layers of bfloat16 by matrix tiles: sixteen columns, sixteen rows of x and 32 inputs in one instruction.
//
// A tile of sums takes its products in steps of 32 inputs, from the first to the last, whatever else is computed
// beside it. So a row's result depends on its x and the weights alone here too: not on the rows that share its
// tile, on their number, or on whether a sum waits in memory between two pieces of the inputs.
//
// Rows of x are cut into tiles of one size; the last tile begins early where it would not be full, and computes
// some rows a second time. x is laid out tile after tile, [tiles][in/32][rows of a tile][32], filled up with zeros.
// Two tiles and two strips are multiplied at a time, which loads least for a product. The first two tiles read a panel
// of weights from memory, in order, and the time is that of reading; for the others it lies in the first-level cache,
// if the inputs are few: else they are cut into pieces. Results go to memory that is near, some panels of all rows, and
// from there to y: its rows lie in other pages of memory each, and to go to all of them after every panel takes longer
// than the products.
#pragma once

#include <type_traits>

#include "linear.h"

namespace minedraft {
namespace {

constexpr int64_t kTileRows = 16, kTileInputs = 2 * kTileSteps, kTileBytes = 1024;
// Rows that are multiplied together: their sums and a piece of their x stay in the second-level cache.
constexpr int64_t kMostTiles = 32;
constexpr int64_t kNearBytes = 1 << 20, kSumBytes = 1 << 19;
constexpr int64_t kWrittenPanels = 16;
// Logits of more bytes go past the caches: they would not stay there, and each line would be read before it is written.
constexpr int64_t kFarBytes = 1 << 22;
// Steps of a panel that stay in the first-level cache, where there are several passes over it.
constexpr int64_t kNearSteps = 18;
// From so many tiles on there is time to fetch the next piece meanwhile. With fewer, memory's own prefetcher is faster,
// and does nothing while others fetch.
constexpr int64_t kFetchFromTiles = 12;
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

// Which tile is what where `X` tiles of x meet two strips of weights. Sums come first, row after row.
template <int X>
struct TileUse {
    static_assert(X <= 2);
    static constexpr int sum(int x, int strip) { return 2 * x + strip; }
    static constexpr int x(int i) { return i == 1 ? 4 : 6; }
    static constexpr int weight(int strip) { return strip == 1 ? 5 : 7; }

    static void configure(int64_t rows) {
        TileConfig config;
        for (int i = 0; i < 8; ++i) config.set(i, rows);
        for (int i = 0; i < 2; ++i) config.set(weight(i), kTileRows);
        configure_tiles(config);
    }
};

// Weights are fetched step by step while others are multiplied: those just ahead; or of the next piece, in the order of
// memory, a part of it in each pass; or none.
struct FetchNear {
    MINEDRAFT_INLINE void fetch(const uint8_t* weight) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTileBytes; i += 64) fetch_near(weight + kTilesFetchAhead + i);
    }
    MINEDRAFT_INLINE void advance() {}
};
struct FetchNext {
    const uint8_t* at;
    int64_t lines;  // in each step

    MINEDRAFT_INLINE void fetch(const uint8_t*) {}
    MINEDRAFT_INLINE void advance() {
        for (int64_t i = 0; i < lines; ++i, at += 64) fetch_far(at);
    }
};
struct FetchNothing {
    MINEDRAFT_INLINE void fetch(const uint8_t*) {}
    MINEDRAFT_INLINE void advance() {}
};

// One pass over a piece of the inputs: its x and weights, and where its sums go, or come from too.
struct TilePass {
    const uint8_t* x;
    int64_t x_step, x_tile;  // bytes from step to step, from tile to tile
    const uint8_t* weight;
    int64_t strip_bytes, steps, rows;
    float* sums;  // [X * rows][kPanel]
    bool resumes;
};

// `StaysNear`: whether the same x comes again, before the first-level cache has lost it.
template <int X, bool StaysNear, class Fetch>
void multiply_tiles(const TilePass& p, Fetch fetch) {
    using Use = TileUse<X>;
    constexpr int64_t kSumStride = kPanel * sizeof(float);
    const auto sums_at = [&](int x, int strip) __attribute__((always_inline)) {
        return p.sums + x * p.rows * kPanel + strip * kStrip;
    };
    repeat<0, 2 * X>([&](auto i) __attribute__((always_inline)) {
        if (p.resumes)
            load_tile<Use::sum(i / 2, i % 2)>(sums_at(i / 2, i % 2), kSumStride);
        else
            zero_tile<Use::sum(i / 2, i % 2)>();
    });
    const uint8_t *x = p.x, *weight = p.weight;
    const int64_t x_step = p.x_step, x_tile = p.x_tile, strip_bytes = p.strip_bytes;
    for (int64_t step = 0; step < p.steps; ++step) {
        fetch.fetch(weight);
        load_tile<Use::weight(0)>(weight, 64);
        repeat<0, X>([&](auto i) __attribute__((always_inline)) {
            if constexpr (StaysNear)
                load_tile<Use::x(i)>(x + i * x_tile, 64);
            else
                load_tile_once<Use::x(i)>(x + i * x_tile, 64);
            multiply_tile<Use::sum(i, 0), Use::x(i), Use::weight(0)>();
        });
        fetch.fetch(weight + strip_bytes);
        load_tile<Use::weight(1)>(weight + strip_bytes, 64);
        repeat<0, X>([&](auto i) __attribute__((always_inline)) {
            multiply_tile<Use::sum(i, 1), Use::x(i), Use::weight(1)>();
        });
        fetch.advance();
        x += x_step;
        weight += kTileBytes;
    }
    repeat<0, 2 * X>([&](auto i) __attribute__((always_inline)) {
        store_tile<Use::sum(i / 2, i % 2)>(sums_at(i / 2, i % 2), kSumStride);
    });
}

// How many steps of the inputs, and then how many panels, are gone through together, for at most `rows` rows. A piece
// of the inputs is cut so that its weights stay near while all tiles of x pass; where x itself does not, some panels
// take their piece of it, and their sums wait in memory.
struct TileCut {
    int64_t rows, steps, panels, sum_bytes, written_bytes;

    TileCut(const Linear& a, const RowTiles& tiles) : steps(num_tile_steps(a)), panels(1) {
        const int64_t count = tiles.count < kMostTiles ? tiles.count : kMostTiles;
        rows = count * tiles.size;
        sum_bytes = rows * kPanel * sizeof(float);
        written_bytes = rows * kWrittenPanels * kPanel * (a.y_dtype == kFloat32 ? 4 : 2);
        if (count <= 2) return;
        const bool is_far = steps * count * tiles.step_bytes() > kNearBytes;
        const int64_t pieces = (steps + kNearSteps - 1) / kNearSteps;
        steps = (steps + pieces - 1) / pieces;
        if (is_far && kSumBytes > sum_bytes) panels = kSumBytes / sum_bytes;
        if (panels > kWrittenPanels) panels = kWrittenPanels;
        sum_bytes *= panels;
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
        return cut.sum_bytes + cut.written_bytes;
    }

    void multiply(int64_t first_panel, int64_t last_panel) {
        if (!tiles.count || first_panel >= last_panel) return;
        TileUse<2>::configure(tiles.size);
        for (first_tile = 0; first_tile < tiles.count; first_tile += kMostTiles) {
            num_tiles = tiles.count - first_tile < kMostTiles ? tiles.count - first_tile : kMostTiles;
            for (first = first_panel; first < last_panel; first = last) {
                last = first + kWrittenPanels < last_panel ? first + kWrittenPanels : last_panel;
                for (group = first; group < last; group = group_end) {
                    group_end = group + cut.panels < last ? group + cut.panels : last;
                    for (int64_t step = 0; step < steps; step += cut.steps)
                        for (int64_t panel = group; panel < group_end; ++panel) multiply_piece(panel, step);
                }
                copy_to_y();
            }
        }
        release_tiles();
    }

  private:
    const Linear& a;
    const RowTiles tiles;
    const int64_t steps;
    const TileCut cut;
    float* sums;       // [panels that are cut together][tiles][rows of a tile][kPanel]
    uint8_t* written;  // [rows][kWrittenPanels][kPanel], as y has them
    // The tiles and panels at hand: those that are written together, and of them those that are cut together.
    int64_t first_tile = 0, num_tiles = 0, first = 0, last = 0, group = 0, group_end = 0;

    int64_t strip_bytes() const { return steps * kTileBytes; }
    const uint8_t* weight_at(int64_t panel, int64_t step) const {
        return a.weight + 2 * panel * strip_bytes() + step * kTileBytes;
    }
    int64_t steps_from(int64_t step) const { return steps - step < cut.steps ? steps - step : cut.steps; }

    void multiply_piece(int64_t panel, int64_t step) const {
        if (num_tiles <= 2) return multiply_pair<true>(panel, step, 0, FetchNear{});
        multiply_pair<false>(panel, step, 0, FetchNear{});
        if (num_tiles < kFetchFromTiles) {
            for (int64_t tile = 2; tile < num_tiles; tile += 2) multiply_pair<false>(panel, step, tile, FetchNothing{});
            return;
        }
        // The piece after this one, strip after strip; the last piece of all fetches what is no weight of this layer.
        const bool is_last = panel + 1 == group_end, goes_on = step + cut.steps < steps;
        const int64_t next_step = is_last ? (goes_on ? step + cut.steps : 0) : step;
        const uint8_t* next = weight_at(is_last && goes_on ? group : panel + 1, next_step);
        const int64_t passes = (num_tiles - 1) / 2, here = steps_from(step);
        const int64_t lines = 2 * steps_from(next_step) * (kTileBytes / 64);
        for (int64_t pass = 0; pass < passes; ++pass) {
            const int64_t from = lines * pass / passes, count = lines * (pass + 1) / passes - from;
            const bool is_second = from >= lines / 2;
            const uint8_t* at = next + (is_second ? strip_bytes() : 0) + 64 * (is_second ? from - lines / 2 : from);
            multiply_pair<false>(panel, step, 2 + 2 * pass, FetchNext{at, (count + here - 1) / here});
        }
    }

    // Two tiles of x from `tile` on, or the last one.
    template <bool StaysNear, class Fetch>
    void multiply_pair(int64_t panel, int64_t step, int64_t tile, Fetch fetch) const {
        const int64_t x_tile = steps * tiles.step_bytes(), here = steps_from(step);
        float* at = sums + ((panel - group) * cut.rows + tile * tiles.size) * kPanel;
        const TilePass pass{a.packed_x + (first_tile + tile) * x_tile + step * tiles.step_bytes(),
                            tiles.step_bytes(),
                            x_tile,
                            weight_at(panel, step),
                            strip_bytes(),
                            here,
                            tiles.size,
                            at,
                            step > 0};
        const int64_t count = num_tiles - tile < 2 ? 1 : 2;
        if (count == 2)
            multiply_tiles<2, StaysNear>(pass, fetch);
        else
            multiply_tiles<1, StaysNear>(pass, fetch);
        if (step + here == steps)
            for (int64_t i = 0; i < count; ++i) write(at + i * tiles.size * kPanel, tile + i, panel);
    }

    int64_t width() const { return a.y_dtype == kFloat32 ? 4 : 2; }
    int64_t row_of_tile(int64_t tile) const { return tiles.begin(first_tile + tile) - tiles.begin(first_tile); }

    // The finished sums of a tile.
    void write(const float* from, int64_t tile, int64_t panel) const {
        constexpr int64_t stride = kWrittenPanels * kPanel;
        const int64_t column = panel * kPanel;
        uint8_t* to = written + (row_of_tile(tile) * stride + column - first * kPanel) * width();
        if (a.y_dtype == kFloat32)
            write_rows<Float32>(a, from, tiles.size, 2, column, to, stride);
        else if (column + kPanel <= a.out && !a.bias)
            write_panel(from, reinterpret_cast<uint16_t*>(to), stride);
        else
            write_rows<Bfloat16>(a, from, tiles.size, 2, column, to, stride);
    }

    void write_panel(const float* from, uint16_t* to, int64_t stride) const {
        for (int64_t r = 0; r < tiles.size; ++r, from += kPanel, to += stride) store_panel(to, from);
    }

    void copy_to_y() const {
        const int64_t column = first * kPanel, end = last * kPanel < a.out ? last * kPanel : a.out;
        const int64_t first_row = tiles.begin(first_tile), num_rows = row_of_tile(num_tiles - 1) + tiles.size;
        const int64_t bytes = (end - column) * width();
        auto* to = static_cast<uint8_t*>(a.y) + (first_row * a.y_stride + column) * width();
        const uint8_t* from = written;
        const auto all = reinterpret_cast<uintptr_t>(to) | a.y_stride * width() | bytes;
        const bool is_far = a.y_dtype == kFloat32 && tiles.rows * a.out * width() > kFarBytes && all % 64 == 0;
        for (int64_t r = 0; r < num_rows; ++r, to += a.y_stride * width(), from += kWrittenPanels * kPanel * width())
            if (is_far)
                copy_past_caches(to, from, bytes);
            else
                std::memcpy(to, from, bytes);
        if (is_far) finish_copies();
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
