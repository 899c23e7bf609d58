// Which columns of a row of logits top-k, top-p and min-p keep: those at or above one threshold.
//
// One pass over the row finds the maximum of every block of columns. A threshold is then found by bisection
// over the bit patterns of float32, at most 32 steps, among the few columns that can reach it: those of the
// blocks whose maximum does. Sums run lane by lane within a block of 128, then over blocks in float64; their
// order depends on nothing but the row.
#pragma once

#include <algorithm>
#include <cmath>

#include "../rows.h"
#include "lanes.h"

namespace minedraft {
namespace {
namespace choosing {

constexpr float kInfinity = __builtin_inff();

// Memory of one thread, for rows of `columns`.
struct Scratch {
    double* sums;      // of weights, [blocks]
    double* q_probs;   // [kMaxEntries]
    int64_t* q_ids;    // [kMaxEntries]
    float* maxima;     // [blocks], filled up with -infinity to whole blocks
    float* values;     // of kept columns, filled up with -infinity
    float* weights;    // of kept columns
    float* rest;       // of values, what a search has not decided yet
    int32_t* columns;  // kept, ascending
    int32_t* hashes;   // of kept columns

    Scratch(uint8_t* at, int64_t num_columns) {
        const int64_t blocks = round_up(num_blocks(num_columns), kBlock) + kBlock, padded = padded_columns(num_columns);
        const auto take = [&](auto*& to, int64_t count) {
            to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(at);
            at += count * static_cast<int64_t>(sizeof *to);
        };
        take(sums, blocks);
        take(q_probs, kMaxEntries);
        take(q_ids, kMaxEntries);
        take(maxima, blocks);
        take(values, padded);
        take(weights, padded);
        take(rest, padded);
        take(columns, padded);
        take(hashes, padded);
    }
};

// As std::lower_bound, whose instances all instruction sets would share: one may be built for another's CPU.
template <class Int>
const Int* first_at_least(const Int* begin, const Int* end, int64_t value) {
    return std::lower_bound(begin, end, value, [](Int a, int64_t b) { return a < b; });
}

// A row, or the kept columns of one, in whole blocks.
struct View {
    const float* values;
    const int32_t* columns;  // of the values; null: value i is column i
    int64_t count;
    float tail[kBlock];  // a last block that is not whole, filled up with -infinity

    View(const float* row, int64_t num_columns) : values(row), columns(nullptr), count(num_columns) {
        const int64_t whole = count / kBlock * kBlock;
        for (int64_t i = 0; i < kBlock; ++i) tail[i] = whole + i < count ? row[whole + i] : -kInfinity;
    }

    int64_t blocks() const { return num_blocks(count); }
    const float* block(int64_t b) const { return columns || (b + 1) * kBlock <= count ? values + b * kBlock : tail; }
    int64_t column(int64_t i) const { return columns ? columns[i] : i; }
    // Where a column is among the kept ones, or -1.
    int64_t place(int64_t column) const {
        if (!columns) return column >= 0 && column < count ? column : -1;
        const int32_t* at = first_at_least(columns, columns + count, column);
        return at < columns + count && *at == column ? at - columns : -1;
    }
};

inline void fill_up(float* values, int64_t count) {
    for (int64_t i = count; i < round_up(count, kBlock); ++i) values[i] = -kInfinity;
}

// The row's maximum; NaN if it has a NaN. Writes the maximum of each block.
float find_maxima(const View& row, float* maxima) {
    Floats top = fill(-kInfinity);
    uint32_t nans = 0;
    const int64_t blocks = row.blocks();
    for (int64_t b = 0; b < blocks; ++b) {
        const float* p = row.block(b);
        Floats best = fill(-kInfinity);
        for (int64_t i = 0; i < kBlock; i += 2 * kLanes) {
            const Floats left = load(p + i), right = load(p + i + kLanes);
            nans |= unordered(left, right);
            best = max(max(left, right), best);
        }
        maxima[b] = largest_of(best);
        top = max(best, top);
    }
    fill_up(maxima, blocks);
    return nans ? __builtin_nanf("") : largest_of(top);
}

// The first place of the largest value, which is known.
int64_t place_of_peak(const View& row, const float* maxima, float peak) {
    int64_t b = 0;
    while (maxima[b] != peak) ++b;
    const float* p = row.block(b);
    int64_t i = 0;
    while (p[i] != peak) ++i;
    return b * kBlock + i;
}

// Integers in the order of the floats.
inline int64_t rank_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
inline float of_rank(int64_t rank) {
    const int32_t whole = static_cast<int32_t>(rank), bits = whole ^ (whole >> 31 & 0x7fffffff);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Values in whole blocks, and their weights; null: each weighs 1.
struct Weighed {
    const float* values;
    const float* weights;
    int64_t count;

    double at_or_above(float threshold) const {
        const Floats limit = fill(threshold);
        double total = 0;
        for (int64_t b = 0; b < count; b += kBlock) {
            Floats sum = zeros();
            int64_t found = 0;
            for (int64_t i = b; i < b + kBlock; i += kLanes) {
                const Floats value = load(values + i);
                if (weights)
                    sum = add(sum, select(greater(limit, value), zeros(), load(weights + i)));
                else
                    found += __builtin_popcount(at_least(value, limit));
            }
            total += weights ? static_cast<double>(sum_of(sum)) : static_cast<double>(found);
        }
        return total;
    }

    // Only those from `low` on and below `high`. Values go to `scratch.rest`, weights to where they are.
    void narrow(const Scratch& scratch, float low, float high) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i += kLanes) {
            const Floats value = load(values + i);
            uint32_t bits = at_least(value, fill(low)) & ~at_least(value, fill(high));
            if (count - i < kLanes) bits &= (1u << (count - i)) - 1;
            if (!bits) continue;
            pick(values + i, bits, scratch.rest + kept);
            if (weights) pick(weights + i, bits, scratch.weights + kept);
            kept += __builtin_popcount(bits);
        }
        values = scratch.rest;
        count = kept;
        fill_up(scratch.rest, kept);
        if (!weights) return;
        for (int64_t i = kept; i < round_up(kept, kBlock); ++i) scratch.weights[i] = 0;
    }
};

// The largest threshold above `low` and up to `high` at which the values at or above it weigh `goal`; else `low`.
// Now and then what is decided leaves: values below a threshold that does, and those above one that does not.
float last_with(Weighed values, const Scratch& scratch, float low, float high, double goal) {
    constexpr int kStepsBetween = 3;
    int64_t yes = rank_of(low), no = rank_of(high) + 1;
    double above = 0;
    for (int step = 1; no - yes > 1; ++step) {
        const int64_t middle = yes + (no - yes) / 2;
        (above + values.at_or_above(of_rank(middle)) >= goal ? yes : no) = middle;
        if (step % kStepsBetween || values.count <= kBlock) continue;
        above += values.at_or_above(of_rank(no));
        values.narrow(scratch, of_rank(yes), of_rank(no));
    }
    return of_rank(yes);
}

// Makes `view`, a whole row, one of the columns at or above the threshold.
void keep_at_least(View& view, const Scratch& scratch, float threshold) {
    const Floats limit = fill(threshold);
    int64_t kept = 0;
    const int64_t blocks = view.blocks();
    for (int64_t b = 0; b < blocks; ++b) {
        if (scratch.maxima[b] < threshold) continue;
        const float* p = view.block(b);
        const int64_t size = std::min(kBlock, view.count - b * kBlock);
        for (int64_t i = 0; i < size; i += kLanes) {
            uint32_t bits = at_least(load(p + i), limit);
            if (size - i < kLanes) bits &= (1u << (size - i)) - 1;  // -infinity may reach the threshold
            if (!bits) continue;
            pick(p + i, bits, scratch.values + kept);
            pick_columns(b * kBlock + i, bits, scratch.columns + kept);
            kept += __builtin_popcount(bits);
        }
    }
    fill_up(scratch.values, kept);
    view.values = scratch.values;
    view.columns = scratch.columns;
    view.count = kept;
}

// Drops kept columns below the threshold.
void drop_below(View& view, const Scratch& scratch, float threshold) {
    const Floats limit = fill(threshold);
    int64_t kept = 0;
    for (int64_t i = 0; i < view.count; i += kLanes) {
        uint32_t bits = at_least(load(view.values + i), limit);
        if (view.count - i < kLanes) bits &= (1u << (view.count - i)) - 1;
        pick(view.values + i, bits, scratch.values + kept);
        pick(view.columns + i, bits, scratch.columns + kept);
        kept += __builtin_popcount(bits);
    }
    fill_up(scratch.values, kept);
    view.count = kept;
}

// Makes `view` one of its k largest columns, and of those as large as the last of them, which it returns.
float keep_largest(View& view, const Scratch& scratch, float peak, int64_t k) {
    // k blocks have a maximum of at least the k-th largest maximum, so no smaller value is among the largest k.
    float floor = -kInfinity;
    if (!view.columns) {
        if (k <= view.blocks()) floor = last_with({scratch.maxima, nullptr, view.blocks()}, scratch, floor, peak, k);
        keep_at_least(view, scratch, floor);
    }
    const float last = last_with({view.values, nullptr, view.count}, scratch, floor, peak, std::min(k, view.count));
    drop_below(view, scratch, last);
    return last;
}

// What a logit becomes: exp((logit - peak) / temperature). At the peak it is 1.
struct Weigh {
    Floats peak, inverse;
    float lowest;  // below it a weight is 0

    Weigh(float peak_logit, double temperature)
        : peak(fill(peak_logit)),
          inverse(fill(static_cast<float>(1.0 / temperature))),
          lowest(static_cast<float>(peak_logit - 128.0 * temperature)) {}
    Floats operator()(const float* p) const { return exponential(mul(sub(load(p), peak), inverse)); }
};

// Logits so many temperatures below the peak, at one of which a nucleus often ends.
constexpr int kGuesses = 5;
constexpr float kGuessedDepths[kGuesses] = {2.5, 5, 6.5, 8, 10};

// The sum of the weights. Writes the sum of each block and, if `masses` is given, about how much of the whole
// is above each of `floors`, which descend. `maxima` may be null.
double weigh_blocks(const View& view, const Weigh& weigh, const float* maxima, double* sums,
                    const float* floors = nullptr, double* masses = nullptr) {
    double total = 0;
    Floats above[kGuesses];
    for (auto& mass : above) mass = zeros();
    const int64_t blocks = view.blocks();
    for (int64_t b = 0; b < blocks; ++b) {
        sums[b] = 0;
        if (maxima && maxima[b] < weigh.lowest) continue;
        const float* p = view.block(b);
        const bool counts = floors && maxima[b] >= floors[kGuesses - 1];
        Floats sum = zeros();
        for (int64_t i = 0; i < kBlock; i += kLanes) {
            const Floats weight = weigh(p + i);
            sum = add(sum, weight);
            if (counts)
                for (int f = 0; f < kGuesses; ++f)
                    above[f] = add(above[f], select(greater(load(p + i), fill(floors[f])), weight, zeros()));
        }
        total += sums[b] = sum_of(sum);
    }
    if (masses)
        for (int f = 0; f < kGuesses; ++f) masses[f] = sum_of(above[f]);
    return total;
}

// The last logit of the smallest set, of the columns of the view, that has `goal`; `floor` if none above it has.
float nucleus_end(const View& view, const Scratch& scratch, const Weigh& weigh, float floor, float peak, double goal) {
    for (int64_t i = 0; i < round_up(view.count, kBlock); i += kLanes) store(scratch.weights + i, weigh(view.values + i));
    return last_with({view.values, scratch.weights, view.count}, scratch, floor, peak, goal);
}

// Makes `view` one of the nucleus of a whole row: top_p of its weight.
float keep_nucleus(View& view, const Scratch& scratch, const Weigh& weigh, float peak, double temperature,
                   double top_p) {
    float floors[kGuesses];
    double masses[kGuesses];
    for (int f = 0; f < kGuesses; ++f) floors[f] = static_cast<float>(peak - kGuessedDepths[f] * temperature);
    const View row = view;
    const double goal = top_p * weigh_blocks(row, weigh, scratch.maxima, scratch.sums, floors, masses);
    for (int f = 0; f < kGuesses; ++f) {
        if (masses[f] < goal) continue;
        view = row;
        keep_at_least(view, scratch, floors[f]);
        const float last = nucleus_end(view, scratch, weigh, floors[f], peak, goal);
        if (last > floors[f]) return last;  // else it may be that all of them lack it: `masses` are rounded
    }
    view = row;
    keep_at_least(view, scratch, weigh.lowest);
    return nucleus_end(view, scratch, weigh, weigh.lowest, peak, goal);
}

// Makes `view` one of the columns that top-k, then top-p, then min-p keep.
void truncate(View& view, const Scratch& scratch, const ChoiceRequest& r, float peak) {
    float threshold = -kInfinity;
    if (r.top_k > 0 && r.top_k < view.count) threshold = keep_largest(view, scratch, peak, r.top_k);
    if (r.top_p < 1) {
        const Weigh weigh(peak, r.temperature);
        if (view.columns) {
            const double goal = r.top_p * weigh_blocks(view, weigh, nullptr, scratch.sums);
            threshold = nucleus_end(view, scratch, weigh, threshold, peak, goal);
        } else {
            threshold = keep_nucleus(view, scratch, weigh, peak, r.temperature, r.top_p);
        }
    }
    const double least = peak + r.temperature * r.log_min_p;
    if (least > threshold) threshold = static_cast<float>(least);
    if (threshold == -kInfinity) return;
    if (view.columns)
        drop_below(view, scratch, threshold);
    else
        keep_at_least(view, scratch, threshold);
}

}  // namespace choosing
}  // namespace
}  // namespace minedraft
