// Attention of bfloat16 by matrix tiles: sixteen queries at a time, see attention.h for what is computed.
//
// Scores are products of 32 dimensions with sixteen tokens each, and the mix takes sixteen tokens with sixteen
// dimensions each, both as the cache has them. So what one query computes is the same sequence of products in any
// company, but for two things that must not show:
//   - A tile of tokens serves all its queries, those too that do not see all of it. Their shares there are zero, and
//     zero times a value adds nothing unless the value is infinite or NaN. Such tiles are gone through query by query,
//     with zeros for what the query does not see; and tokens that nobody sees, which may be anything, are zeros always.
//   - Adding zero turns -0 into 0, and a subnormal sum into 0. So do all queries in the end.
#pragma once

#include "attention.h"
#include "linear_tiles.h"

namespace minedraft {
namespace {

constexpr int64_t kTileDims = 32, kChunkTiles = kChunk / kStrip, kTilesFetched = 8;

class TileAttender : Attender<Bfloat16, PairsByPairs> {
  public:
    // Heads of other sizes go by rows.
    static bool fits(const Attention& a) { return a.cache.key_dim % kTileDims == 0; }

    TileAttender(const Attention& args, const Task& task, const Task* next, uint8_t* scratch)
        : Attender(args, task, next), size(queries < kTileRows ? queries : kTileRows), dim(args.cache.value_dim),
          ahead(tiles_ahead < kTilesFetched ? tiles_ahead : kTilesFetched) {
        const int64_t num_rows = padded(queries);
        lay_out(s, scratch, a, num_rows, num_tiles);
        begin_task(num_rows);
        const int64_t bytes = a.cache.key_dim * sizeof(uint16_t);
        for (int64_t q = 0; q < queries; ++q) std::memcpy(s.query + q * bytes, query_at(q), bytes);
        std::memset(s.query + queries * bytes, 0, (num_rows - queries) * bytes);
        if (num_rows > queries) std::memset(s.shares, 0, size * kChunk * sizeof(uint16_t));
        for (int64_t i = 0; i < kChunkTiles; ++i) copies[i] = s.seen_value + i * tile_bytes();
        spare = reinterpret_cast<float*>(s.seen_value + kChunkTiles * tile_bytes());
    }

    static size_t lay_out(Scratch<PairsByPairs>& s, uint8_t* base, const Attention& a, int64_t rows, int64_t tiles) {
        return s.lay_out(base, a, padded(rows), tiles, kTileRows, kChunk + 2 * 2 * kTileRows);
    }

    void run() {
        configure();
        for (int64_t chunk = 0; chunk < s.limits[queries - 1]; chunk += kChunk)
            for (int64_t first = 0; first < queries; first += size) {
                const int64_t last = (first + size < queries ? first + size : queries) - 1;
                if (chunk < s.limits[last]) attend(chunk, first, last, first == 0);
            }
        release_tiles();
        for (int64_t q = 0; q < queries; ++q) {
            flush(s.mix + q * dim);
            finish(q);
        }
    }

  private:
    // Which tile is what: sums are 0 to 3.
    static constexpr int kQuery = 4, kKey = 5, kShare = 6, kValue = 7;

    const int64_t size, dim, ahead;  // queries of a block, dimensions of a value, tiles from use to fetching
    uint8_t* copies[kChunkTiles];
    float* spare;  // sums of two blocks

    static int64_t padded(int64_t rows) { return rows < kTileRows ? rows : round_up(rows, kTileRows); }
    int64_t tile_bytes() const { return kStrip * dim * sizeof(uint16_t); }

    void configure() const {
        TileConfig config;
        for (int i = 0; i < 4; ++i) config.set(i, size);
        config.set(kQuery, size);
        config.set(kKey, kTileSteps);
        config.set(kShare, size, kStrip * sizeof(uint16_t));
        config.set(kValue, kStrip / 2);
        configure_tiles(config);
    }

    void attend(int64_t chunk, int64_t first, int64_t last, bool fetches) {
        const int64_t end = s.limits[last] < chunk + kChunk ? s.limits[last] : chunk + kChunk;
        score(chunk, end, first, fetches);
        const int64_t width = round_up(end - chunk, kStrip);
        for (int64_t q = first; q <= last; ++q) {
            const int64_t seen = s.limits[q] - chunk, r = q - first;
            if (seen > 0) share(chunk, q, r);
            const int64_t own = seen > 0 ? round_up(seen, kStrip) : 0;
            if (own < width) std::memset(share_at(r, own), 0, (width - own) * sizeof(uint16_t));
        }
        mix(chunk, width, first, last, fetches);
    }

    uint8_t* share_at(int64_t r, int64_t token) const { return s.shares + (r * kChunk + token) * sizeof(uint16_t); }

    // scores[r][token - chunk] for tokens in chunk..end, rounded up to whole tiles of 16.
    void score(int64_t chunk, int64_t end, int64_t first, bool fetches) const {
        int64_t token = chunk;
        for (; token + 3 * kStrip < end; token += 4 * kStrip) score_tiles<4>(chunk, token, first, fetches);
        for (; token < end; token += kStrip) score_tiles<1>(chunk, token, first, fetches);
    }

    template <int N>
    void score_tiles(int64_t chunk, int64_t token, int64_t first, bool fetches) const {
        const int64_t tile = token / kStrip, key_dim = a.cache.key_dim;
        const uint8_t* query = s.query + first * key_dim * sizeof(uint16_t);
        repeat<0, N>([&](auto i) __attribute__((always_inline)) { zero_tile<i>(); });
        for (int64_t d = 0; d < key_dim; d += kTileDims) {
            load_tile<kQuery>(query + d * sizeof(uint16_t), key_dim * sizeof(uint16_t));
            repeat<0, N>([&](auto i) __attribute__((always_inline)) {
                const int64_t at = d * kStrip * sizeof(uint16_t);
                if (fetches) fetch(s.keys[tile + ahead + i] + at);
                load_tile<kKey>(s.keys[tile + i] + at, 64);
                multiply_tile<i, kQuery, kKey>();
            });
        }
        repeat<0, N>([&](auto i) __attribute__((always_inline)) {
            store_tile<i>(s.scores + token - chunk + i * kStrip, kChunk * sizeof(float));
        });
    }

    static MINEDRAFT_INLINE void fetch(const uint8_t* at) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < kTileBytes; i += 64) fetch_near(at + i);
    }

    // mix of the block's queries += shares * values of `width` tokens from `chunk` on.
    void mix(int64_t chunk, int64_t width, int64_t first, int64_t last, bool fetches) {
        const uint8_t* values[kChunkTiles];
        const int64_t count = width / kStrip;
        bool all_finite = true;
        int64_t ragged = 0;  // the first tile that not all queries see all of
        for (int64_t i = 0; i < count; ++i) {
            const int64_t token = chunk + i * kStrip;
            values[i] = s.values[token / kStrip];
            if (token + kStrip <= s.limits[first]) {
                ragged = i + 1;
                continue;
            }
            if (token + kStrip > s.limits[last]) values[i] = copy_seen(i, token, s.limits[last]);
            all_finite = all_finite && is_finite(values[i]);
        }
        if (all_finite) return mix_tiles(values, 0, count, s.mix + first * dim, fetches ? chunk / kStrip : -1);
        mix_tiles(values, 0, ragged, s.mix + first * dim, fetches ? chunk / kStrip : -1);
        // Rarely, so at leisure: each query for itself, from the sums so far, of which all but its own are dropped.
        float *mixed = s.mix + first * dim, *after = spare, *sums = spare + size * dim;
        for (int64_t q = first; q <= last; ++q) {
            for (int64_t i = ragged; i < count; ++i) values[i] = copy_seen(i, chunk + i * kStrip, s.limits[q]);
            std::memcpy(sums, mixed, size * dim * sizeof(float));
            mix_tiles(values, ragged, count, sums, -1);
            std::memcpy(after + (q - first) * dim, sums + (q - first) * dim, dim * sizeof(float));
        }
        std::memcpy(mixed, after, (last - first + 1) * dim * sizeof(float));
    }

    // The values of tile `i` of a chunk, which begins at `token`, with zeros for tokens from `limit` on.
    const uint8_t* copy_seen(int64_t i, int64_t token, int64_t limit) const {
        const int64_t below = limit > token ? limit - token : 0, seen = below < kStrip ? below : kStrip;
        const int64_t pair_bytes = 2 * dim * sizeof(uint16_t);
        uint8_t* end = copies[i] + (seen + 1) / 2 * pair_bytes;
        std::memcpy(copies[i], s.values[token / kStrip], end - copies[i]);
        std::memset(end, 0, copies[i] + tile_bytes() - end);
        if (seen % 2 == 1)
            for (int64_t d = 0; d < dim; ++d) std::memset(end - pair_bytes + 2 * d * sizeof(uint16_t) + 2, 0, 2);
        return copies[i];
    }

    bool is_finite(const uint8_t* values) const {
        Floats poison[2] = {zeros(), zeros()};  // becomes NaN at the first number that is not finite
        for (int64_t i = 0; i < tile_bytes(); i += 4 * kLanes)
            for (int half = 0; half < 2; ++half) {
                const auto* p = reinterpret_cast<const uint16_t*>(values + i) + half * kLanes;
                poison[half] = fma(load_bfloat16(p), zeros(), poison[half]);
            }
        return sum_of(add(poison[0], poison[1])) == 0;
    }

    // `tile`: the first one's number, where tiles are fetched ahead; else -1.
    void mix_tiles(const uint8_t* const* values, int64_t from, int64_t to, float* sums, int64_t tile) const {
        int64_t d = 0;
        for (; d + 4 * kStrip <= dim; d += 4 * kStrip) mix_strips<4>(values, from, to, sums + d, d, tile);
        for (; d < dim; d += kStrip) mix_strips<1>(values, from, to, sums + d, d, tile);
    }

    template <int N>
    void mix_strips(const uint8_t* const* values, int64_t from, int64_t to, float* sums, int64_t d,
                    int64_t tile) const {
        repeat<0, N>([&](auto i) __attribute__((always_inline)) {
            load_tile<i>(sums + i * kStrip, dim * sizeof(float));
        });
        for (int64_t t = from; t < to; ++t) {
            load_tile<kShare>(share_at(0, t * kStrip), kChunk * sizeof(uint16_t));
            repeat<0, N>([&](auto i) __attribute__((always_inline)) {
                // This strip's part of a tile: the same lines as it reads now, if they lay one after the other.
                if (tile >= 0) fetch_half(s.values[tile + t + ahead] + (d + i * kStrip) * kStrip * 2);
                load_tile<kValue>(values[t] + (d + i * kStrip) * 2 * sizeof(uint16_t), dim * 2 * sizeof(uint16_t));
                multiply_tile<i, kShare, kValue>();
            });
        }
        repeat<0, N>([&](auto i) __attribute__((always_inline)) {
            store_tile<i>(sums + i * kStrip, dim * sizeof(float));
        });
    }

    static MINEDRAFT_INLINE void fetch_half(const uint8_t* at) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < kTileBytes / 2; i += 64) fetch_near(at + i);
    }

    void flush(float* sums) const {
        for (int64_t i = 0; i < dim; i += kLanes) {
            const Floats x = load(sums + i), size = max(x, sub(zeros(), x));
            store(sums + i, select(greater(fill(1.17549435e-38f), size), zeros(), x));
        }
    }
};

namespace tiled {

inline bool is_tiled(const Attention& a) { return a.cache.dtype == kBfloat16 && TileAttender::fits(a); }

size_t attention_scratch_bytes(const Attention& a, int64_t max_task_rows, int64_t max_tokens) {
    if (!is_tiled(a)) return minedraft::attention_scratch_bytes(a, max_task_rows, max_tokens);
    const int64_t tiles = padded_tokens(CacheView(a.cache), max_tokens) / kStrip + 1;
    Scratch<PairsByPairs> scratch;
    return TileAttender::lay_out(scratch, nullptr, a, max_task_rows * a.group, tiles);
}

void attention(const Attention& a, const Task& task, const Task* next, uint8_t* scratch) {
    if (!is_tiled(a)) return minedraft::attention(a, task, next, scratch);
    TileAttender(a, task, next, scratch).run();
}

}  // namespace tiled

}  // namespace
}  // namespace minedraft
