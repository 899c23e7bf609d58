// Attention of query rows to their own request's cached tokens, read where they lie.
//
// A task is some rows of one span and one key head; its queries are those rows of every query head that
// shares the key head. Tokens are taken in chunks counted from the request's first token, and each chunk
// serves all queries of the task while it is near. Per chunk and query:
//   score = q k;  m' = max(m, largest score);  p = 2^(scale (score - m'));  f = 2^(scale (m - m'));
//   l = l f + sum of p;  mix = mix f + p v      (p rounded to bfloat16 where the cache is)
// with log2(e) in the scale, and in the end out = mix / l. What one query computes depends on its own position and tokens alone:
// chunks begin at fixed tokens, sums run in the order of tokens, and nothing beyond its own token is added.
#pragma once

#include "cache.h"

namespace minedraft {
namespace {

constexpr int64_t kChunk = 256;  // tokens, counted in padded blocks
constexpr int kMostStrips = 4;   // tiles of keys, or strips of values, that are summed at once
constexpr int64_t kTilesAhead = 16;  // between the tile that is multiplied and the one that is fetched
constexpr float kInfinity = __builtin_inff();

// Reads of `Kind` from a row of probabilities: [R][kChunk], float32 or bfloat16.
template <class Kind>
using Probabilities =
    Layout<Kind::kXBytes, Kind::kXBytes == 8 ? 4 : 0, kChunk * Kind::kXBytes / Kind::kInputs>;

inline size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

// The scratch of one task: for all its queries, then for the block of them at hand.
template <class Kind>
struct Scratch {
    uint8_t* query;        // packed, block after block
    float* mix;            // [queries][value_dim]
    float* largest;        // [queries], m
    float* total;          // [queries], l
    float* scores;         // [rows of a block][kChunk]
    uint8_t* shares;       // [rows of a block][kChunk], p
    uint8_t* seen_value;   // values without what a query does not see: one pair of tokens, or a chunk's tiles
    int64_t* limits;       // [queries], tokens each sees, counted in padded blocks
    const uint8_t** keys;  // where each tile of 16 tokens lies; then kTilesAhead of the next task
    const uint8_t** values;

    size_t lay_out(uint8_t* base, const Attention& a, int64_t queries, int64_t tiles, int64_t block_rows,
                   int64_t seen_tokens) {
        size_t used = 0;
        const auto take = [&](size_t bytes) {
            uint8_t* at = base + used;
            used += aligned(bytes);
            return at;
        };
        query = take(queries * a.cache.key_dim * Kind::kXBytes / Kind::kInputs);
        mix = reinterpret_cast<float*>(take(queries * a.cache.value_dim * sizeof(float)));
        largest = reinterpret_cast<float*>(take(queries * sizeof(float)));
        total = reinterpret_cast<float*>(take(queries * sizeof(float)));
        scores = reinterpret_cast<float*>(take(block_rows * kChunk * sizeof(float)));
        shares = take(block_rows * kChunk * Kind::kXBytes / Kind::kInputs);
        seen_value = take(a.cache.value_dim * seen_tokens * bytes_of(a.cache.dtype));
        limits = reinterpret_cast<int64_t*>(take(queries * sizeof(int64_t)));
        keys = reinterpret_cast<const uint8_t**>(take((tiles + kTilesAhead) * sizeof(*keys)));
        values = reinterpret_cast<const uint8_t**>(take((tiles + kTilesAhead) * sizeof(*values)));
        return used;
    }
};

// What is common to the ways of attending: the task, its tokens' places, and what goes on between the products.
template <class D, class Kind>
class Attender {
  protected:
    Attender(const Attention& args, const Task& task, const Task* next)
        : a(args), view(args.cache), span(args.spans[task.span]), head(task.head), queries(task.rows * args.group),
          first_row(span.first_row + task.first), num_tiles(tiles_of(task)),
          tiles_ahead(num_tiles < kTilesAhead ? num_tiles : kTilesAhead), task_(task), next_(next) {}

    // Call it once `s` is laid out, for `num_rows` queries; some may be there to fill up a block.
    void begin_task(int64_t num_rows) {
        find_tiles(task_, 0, num_tiles);
        for (int64_t i = 0; i < kTilesAhead; ++i) {
            s.keys[num_tiles + i] = s.keys[0];
            s.values[num_tiles + i] = s.values[0];
        }
        if (next_) find_tiles(*next_, num_tiles, tiles_of(*next_) < kTilesAhead ? tiles_of(*next_) : kTilesAhead);
        for (int64_t q = 0, row = 0; q < queries; ++row) {
            const int64_t limit = padded_tokens(view, span.start + task_.first + row + 1);
            for (int64_t end = q + a.group; q < end; ++q) {
                s.limits[q] = limit;
                s.largest[q] = -kInfinity;
                s.total[q] = 0;
            }
        }
        std::memset(s.mix, 0, num_rows * a.cache.value_dim * sizeof(float));
    }

    const Attention& a;
    CacheView view;
    const Span& span;
    const int64_t head, queries, first_row, num_tiles, tiles_ahead;
    Scratch<Kind> s;

    // Query q as it lies in memory.
    const typename D::Type* query_at(int64_t q) const {
        return row_of<D>(a.query, first_row + q / a.group, a.query_stride) +
               (head * a.group + q % a.group) * a.cache.key_dim;
    }

    // Scores of query q to probabilities; what was mixed so far is scaled to the new largest score.
    void share(int64_t chunk, int64_t q, int64_t r) {
        float* scores = s.scores + r * kChunk;
        const int64_t seen = s.limits[q] - chunk < kChunk ? s.limits[q] - chunk : kChunk;
        const int64_t width = round_up(seen, kStrip);
        hide(scores, chunk, seen, width);
        Floats best = fill(-kInfinity);
        for (int64_t i = 0; i < width; i += kLanes) best = max(best, load(scores + i));
        const float before = s.largest[q], found = largest_of(best), largest = found > before ? found : before;
        // Where every score is -inf, e^(-inf - -inf) would be NaN for later chunks too.
        const float in_twos = a.scale * 1.44269504f;
        const Floats scale = fill(in_twos), base = fill(largest == -kInfinity ? 0.0f : -largest * in_twos);
        Floats sum = zeros();
        auto* shares = reinterpret_cast<typename ShareOf<Kind>::Type*>(s.shares) + r * kChunk;
        for (int64_t i = 0; i < width; i += kLanes) {
            const Floats p = power_of_two(fma(load(scores + i), scale, base));
            ShareOf<Kind>::store_share(shares + i, p);
            sum = add(sum, p);
        }
        const Floats factor = power_of_two(fma(fill(before), scale, base));
        float lanes[kLanes];
        store(lanes, factor);
        s.largest[q] = largest;
        s.total[q] = s.total[q] * lanes[0] + sum_of(sum);
        if (lanes[0] == 1.0f) return;
        float* mixed = s.mix + q * a.cache.value_dim;
        for (int64_t d = 0; d < a.cache.value_dim; d += kLanes) store(mixed + d, mul(load(mixed + d), factor));
    }

    // -inf for tokens beyond the query's own, and for the unused end of a padded block.
    void hide(float* scores, int64_t chunk, int64_t seen, int64_t width) const {
        for (int64_t i = width - kStrip; seen < width && i < width; i += kLanes) {
            const Mask is_seen = greater(fill(static_cast<float>(seen - i)), lane_numbers());
            store(scores + i, select(is_seen, load(scores + i), fill(-kInfinity)));
        }
        if (view.padded == a.cache.block_size) return;
        for (int64_t i = 0; i < seen; ++i)
            if ((chunk + i) % view.padded >= a.cache.block_size) scores[i] = -kInfinity;
    }

    void finish(int64_t q) {
        const int64_t dim = a.cache.value_dim;
        auto* out = row_of<D>(a.out, first_row + q / a.group, a.out_stride) + (head * a.group + q % a.group) * dim;
        for (int64_t d = 0; d < dim; d += kLanes)
            D::store_lanes(out + d, div(load(s.mix + q * dim + d), fill(s.total[q])));
    }

    // A share is kept as `Kind` reads it.
    template <class K, bool InPairs = K::kXBytes == 4 && K::kInputs == 2>
    struct ShareOf : Float32 {
        static void store_share(float* p, Floats x) { store(p, x); }
    };
    template <class K>
    struct ShareOf<K, true> : Bfloat16 {
        static void store_share(uint16_t* p, Floats x) { store_bfloat16(p, x); }
    };

  private:
    const Task& task_;
    const Task* next_;

    int64_t tiles_of(const Task& task) const {
        return (padded_tokens(view, a.spans[task.span].start + task.first + task.rows) + kStrip - 1) / kStrip;
    }

    // Where the first `count` tiles of a task lie, to `at` and after it.
    void find_tiles(const Task& task, int64_t at, int64_t count) {
        const int64_t per_block = view.padded / kStrip, bytes = kStrip * bytes_of(a.cache.dtype);
        const int32_t* block = a.blocks + a.spans[task.span].first_block;
        for (int64_t tile = 0; tile < count; ++block)
            for (int64_t i = 0; i < per_block && tile < count; ++i, ++tile) {
                s.keys[at + tile] = view.keys(*block, task.head) + i * a.cache.key_dim * bytes;
                s.values[at + tile] = view.values(*block, task.head) + i * a.cache.value_dim * bytes;
            }
    }
};

template <class D, class Kind>
class RowAttender : Attender<D, Kind> {
    using Base = Attender<D, Kind>;
    using Base::a, Base::queries, Base::s, Base::tiles_ahead;

  public:
    RowAttender(const Attention& args, const Task& task, const Task* next, uint8_t* scratch) : Base(args, task, next) {
        s.lay_out(scratch, a, queries, this->num_tiles, kMaxRows, Kind::kInputs);
        this->begin_task(queries);
        num_blocks = (queries + kMaxRows - 1) / kMaxRows;
        for (int64_t b = 0; b < num_blocks; ++b) pack_queries(begin(b), begin(b + 1) - begin(b));
    }

    void run() {
        for (int64_t chunk = 0; chunk < s.limits[queries - 1]; chunk += kChunk)
            for (int64_t b = 0; b < num_blocks; ++b)
                if (chunk < s.limits[begin(b + 1) - 1])
                    attend_rows<kMaxRows>(chunk, begin(b), begin(b + 1) - begin(b), b == 0);
        for (int64_t q = 0; q < queries; ++q) this->finish(q);
    }

  private:
    int64_t num_blocks;

    int64_t begin(int64_t block) const { return queries * block / num_blocks; }

    void pack_queries(int64_t first, int64_t size) {
        const int64_t dim = a.cache.key_dim;
        uint8_t* to = s.query + first * dim * Kind::kXBytes / Kind::kInputs;
        for (int64_t r = 0; r < size; ++r) {
            const auto* x = this->query_at(first + r);
            if constexpr (Kind::kXBytes == 4 && Kind::kInputs == 2) {
                auto* pairs = reinterpret_cast<uint32_t*>(to) + r;
                for (int64_t d = 0; d < dim / 2; ++d) std::memcpy(pairs + d * size, x + 2 * d, 4);
            } else {
                auto* floats = reinterpret_cast<float*>(to) + r;
                for (int64_t d = 0; d < dim; ++d) floats[d * size] = float_of(x[d]);
            }
        }
    }
    static float float_of(float x) { return x; }
    static float float_of(uint16_t x) {
        const uint32_t bits = static_cast<uint32_t>(x) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }

    template <int R>
    void attend_rows(int64_t chunk, int64_t first, int64_t size, bool fetches) {
        if (size == R) return attend<R>(chunk, first, fetches);
        if constexpr (R > 1) attend_rows<R - 1>(chunk, first, size, fetches);
    }

    template <int R>
    void attend(int64_t chunk, int64_t first, bool fetches) {
        const int64_t end = s.limits[first + R - 1] < chunk + kChunk ? s.limits[first + R - 1] : chunk + kChunk;
        score<R>(chunk, end, first, fetches);
        for (int r = 0; r < R; ++r)
            if (s.limits[first + r] > chunk) this->share(chunk, first + r, r);
        // Tokens that all R queries see, in whole steps; then the rest, for those of one row together.
        const int64_t shared = s.limits[first] / Kind::kInputs * Kind::kInputs, both = shared < end ? shared : end;
        if (both > chunk) mix<R>(chunk, chunk, both, first, 0, fetches);
        for (int r = 0, size; r < R; r += size) {
            const int64_t limit = s.limits[first + r], own = limit < end ? limit : end;
            for (size = 1; r + size < R && s.limits[first + r + size] == limit;) ++size;
            const int64_t from = both > chunk ? both : chunk;
            if (own > from) mix_rows<R>(chunk, from, own, first + r, r, size);
        }
    }

    template <int R>
    void mix_rows(int64_t chunk, int64_t from, int64_t to, int64_t first, int64_t r, int64_t size) {
        if (size == R) {
            const int64_t whole = to / Kind::kInputs * Kind::kInputs;
            if (whole > from) mix<R>(chunk, from, whole, first, r);
            if (to > whole) mix_last<R>(chunk, whole, first, r);
        } else if constexpr (R > 1) {
            mix_rows<R - 1>(chunk, from, to, first, r, size);
        }
    }

    // scores[r][token - chunk] for tokens in chunk..end, rounded up to whole tiles of 16.
    template <int R>
    void score(int64_t chunk, int64_t end, int64_t first, bool fetches) {
        constexpr int S = strips_for<R>(kMostStrips);
        const int64_t steps = a.cache.key_dim / Kind::kInputs;
        const uint8_t* x = s.query + first * a.cache.key_dim * Kind::kXBytes / Kind::kInputs;
        int64_t token = chunk;
        for (; token + (S - 1) * kStrip < end; token += S * kStrip) score_tiles<R, S>(x, chunk, token, steps, fetches);
        for (; token < end; token += kStrip) score_tiles<R, 1>(x, chunk, token, steps, fetches);
    }

    template <int R, int S>
    void score_tiles(const uint8_t* x, int64_t chunk, int64_t token, int64_t steps, bool fetches) {
        using X = typename Kind::template Packed<R>;
        const int64_t tile = token / kStrip;
        const uint8_t* w[S];
        for (int i = 0; i < S; ++i) w[i] = s.keys[tile + i];
        Sums<R, S> sums;
        sums.clear();
        if (fetches) {
            Ahead<S> ahead;
            ahead.step = Kind::kStripBytes;
            for (int i = 0; i < S; ++i) ahead.at[i] = s.keys[tile + tiles_ahead + i];
            multiply<Kind, X>(sums, x, w, Kind::kStripBytes, steps, ahead);
        } else {
            multiply<Kind, X>(sums, x, w, Kind::kStripBytes, steps);
        }
        sums.write(s.scores + token - chunk, kChunk);
    }

    // mix of R queries from `first` on += shares * values of the tokens from..to, whole steps.
    template <int R>
    void mix(int64_t chunk, int64_t from, int64_t to, int64_t first, int64_t r, bool fetches = false) {
        constexpr int S = strips_for<R>(kMostStrips);
        int64_t d = 0;
        for (; d + S * kStrip <= a.cache.value_dim; d += S * kStrip)
            mix_strips<R, S>(chunk, from, to, first, r, d, fetches);
        for (; d < a.cache.value_dim; d += kStrip) mix_strips<R, 1>(chunk, from, to, first, r, d, fetches);
    }

    template <int R, int S>
    void mix_strips(int64_t chunk, int64_t from, int64_t to, int64_t first, int64_t r, int64_t d, bool fetches) {
        Sums<R, S> sums;
        sums.read(s.mix + first * a.cache.value_dim + d, a.cache.value_dim);
        for (int64_t token = from; token < to;) {
            const int64_t offset = token % kStrip, left = kStrip - offset;
            const int64_t count = left < to - token ? left : to - token, bytes = bytes_of(a.cache.dtype);
            const uint8_t* values = s.values[token / kStrip] + offset * a.cache.value_dim * bytes;
            if (fetches) {
                // This strip's share of a tile: the same lines as it reads now, if they lay one after the other.
                Ahead<S> ahead;
                ahead.step = 64;
                for (int i = 0; i < S; ++i)
                    ahead.at[i] = s.values[token / kStrip + tiles_ahead] + (d + i * kStrip) * kStrip * bytes;
                multiply_values(sums, values, chunk, token, count, r, d, ahead);
            } else {
                multiply_values(sums, values, chunk, token, count, r, d);
            }
            token += count;
        }
        sums.write(s.mix + first * a.cache.value_dim + d, a.cache.value_dim);
    }

    template <int R, int S, class Fetch = Nothing>
    MINEDRAFT_INLINE void multiply_values(Sums<R, S>& sums, const uint8_t* values, int64_t chunk, int64_t token, int64_t count,
                         int64_t r, int64_t d, Fetch fetch = {}) {
        constexpr int64_t share_bytes = Kind::kXBytes / Kind::kInputs;
        const int64_t bytes = Kind::kInputs * bytes_of(a.cache.dtype);  // of one dimension in a step
        const uint8_t* w[S];
        for (int i = 0; i < S; ++i) w[i] = values + (d + i * kStrip) * bytes;
        multiply<Kind, Probabilities<Kind>>(sums, s.shares + (r * kChunk + token - chunk) * share_bytes, w,
                                            a.cache.value_dim * bytes, count / Kind::kInputs, fetch);
    }

    // The last token of R queries where it is the first of a pair: its neighbour is no token of theirs.
    template <int R>
    void mix_last(int64_t chunk, int64_t token, int64_t first, int64_t r) {
        const int64_t dim = a.cache.value_dim;
        const auto* pairs = reinterpret_cast<const uint16_t*>(s.values[token / kStrip]) + token % kStrip * dim;
        auto* kept = reinterpret_cast<uint16_t*>(s.seen_value);
        for (int64_t d = 0; d < dim; ++d) {
            kept[2 * d] = pairs[2 * d];
            kept[2 * d + 1] = 0;
        }
        for (int64_t d = 0; d < dim; d += kStrip) {
            Sums<R, 1> sums;
            sums.read(s.mix + first * dim + d, dim);
            multiply_values(sums, s.seen_value, chunk, token, 2, r, d);
            sums.write(s.mix + first * dim + d, dim);
        }
    }

};

template <class F>
inline auto with_cache_kind(const Attention& a, F f) {
    if (a.cache.dtype == kFloat32) return f(Float32{}, FloatsByFloats{});
    if constexpr (kHasDot) return f(Bfloat16{}, PairsByPairs{});
    return f(Bfloat16{}, FloatsByPairs{});
}

// `max_tokens`: of the longest request, the new ones included.
size_t attention_scratch_bytes(const Attention& a, int64_t max_task_rows, int64_t max_tokens) {
    const int64_t tiles = padded_tokens(CacheView(a.cache), max_tokens) / kStrip + 1;
    return with_cache_kind(a, [&](auto, auto kind) {
        return Scratch<decltype(kind)>().lay_out(nullptr, a, max_task_rows * a.group, tiles, kMaxRows, kind.kInputs);
    });
}

void attention(const Attention& a, const Task& task, const Task* next, uint8_t* scratch) {
    with_cache_kind(a, [&](auto dtype, auto kind) {
        RowAttender<decltype(dtype), decltype(kind)>(a, task, next, scratch).run();
    });
}

}  // namespace
}  // namespace minedraft
