// Chooses the tokens of one request: its drafts are decided in order, up to the first that is not accepted.
//
// The rules, and the random numbers, are those of minedraft_workers.sampling; what differs is how often the
// row is read. The maximum, and under kCoupled a bound of every noisy logit, take one pass, weights a second
// one; what is then left to do is done for a few columns, in float64 as there.
#pragma once

#include "request.h"
#include "truncate.h"

namespace minedraft {
namespace {
namespace choosing {

// Of logit + temperature * noise a bound that needs no logarithm, see `coupled_choice` in
// minedraft_workers.sampling.choose: noise <= kBoundOffset - kBoundUnit * noise_steps.
constexpr double kLn2 = 0.6931471805599453;
constexpr double kBoundUnit = kLn2 / (1 << 23), kBoundOffset = kLn2 * (127 + 31);

inline double gumbel(int32_t noise) { return -std::log(-std::log1p(-((noise + 0.5) * 0x1p-31))); }
inline double unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1p-53; }

struct Noise {
    const int32_t* hashes;  // of the values of the view
    int32_t tail[kBlock];   // as that of a view
    uint64_t key;
    double temperature;
    Floats unit;

    // `table`: of all columns; kept ones are looked up into `scratch`.
    Noise(const View& view, const int32_t* table, const Scratch& scratch, uint64_t key, double temperature)
        : hashes(table), key(key), temperature(temperature), unit(fill(static_cast<float>(-kBoundUnit * temperature))) {
        const int64_t whole = view.count / kBlock * kBlock;
        if (view.columns) {
            for (int64_t i = 0; i < round_up(view.count, kBlock); ++i)
                scratch.hashes[i] = i < view.count ? table[view.columns[i]] : 0;
            hashes = scratch.hashes;
        } else {
            for (int64_t i = 0; i < kBlock; ++i) tail[i] = whole + i < view.count ? table[whole + i] : 0;
        }
    }
    const int32_t* block(const View& view, int64_t b) const {
        return view.columns || (b + 1) * kBlock <= view.count ? hashes + b * kBlock : tail;
    }
    Floats bound(Floats logits, const int32_t* at) const { return fma(noise_steps(at, key), unit, logits); }
    double score(float logit, int32_t hash) const { return gumbel(noise_of(hash, key)) * temperature + logit; }
};

// Writes the largest bound of each block and returns the largest logit; NaN if there is one.
float find_bounds(const View& view, const Noise& noise, float* maxima) {
    Floats top = fill(-kInfinity);
    uint32_t nans = 0;
    for (int64_t b = 0; b < view.blocks(); ++b) {
        const float* p = view.block(b);
        const int32_t* h = noise.block(view, b);
        Floats best = fill(-kInfinity);
        for (int64_t i = 0; i < kBlock; i += 2 * kLanes) {
            const Floats left = load(p + i), right = load(p + i + kLanes);
            nans |= unordered(left, right);
            top = max(max(left, right), top);
            best = max(max(noise.bound(left, h + i), noise.bound(right, h + i + kLanes)), best);
        }
        maxima[b] = largest_of(best);
    }
    return nans ? __builtin_nanf("") : largest_of(top);
}

inline int64_t first_largest(const float* values, int64_t count) {
    int64_t at = 0;
    for (int64_t i = 1; i < count; ++i)
        if (values[i] > values[at]) at = i;
    return at;
}

// The place of the largest logit + noise, the first of equal ones. The largest logit is `peak`.
int64_t place_of_winner(const View& view, const Noise& noise, const float* maxima, float peak) {
    const int64_t blocks = view.blocks();
    const auto bounds_of = [&](int64_t b, float* bounds) {
        for (int64_t i = 0; i < kBlock; i += kLanes)
            store(bounds + i, noise.bound(load(view.block(b) + i), noise.block(view, b) + i));
    };
    float bounds[kBlock];
    const int64_t likeliest = first_largest(maxima, blocks);
    bounds_of(likeliest, bounds);
    const int64_t at = first_largest(bounds, kBlock);
    const double score = noise.score(view.block(likeliest)[at], noise.block(view, likeliest)[at]);
    const double rounding = 1e-3 * noise.temperature + 1e-6 * (std::fabs(peak) + std::fabs(score));
    const double limit = score - noise.temperature * kBoundOffset - rounding;
    int64_t winner = likeliest * kBlock + at;
    double best = -HUGE_VAL;
    for (int64_t b = 0; b < blocks; ++b) {
        if (!(maxima[b] >= limit)) continue;
        bounds_of(b, bounds);
        for (int64_t i = 0; i < kBlock; ++i) {
            if (!(bounds[i] >= limit)) continue;
            const double other = noise.score(view.block(b)[i], noise.block(view, b)[i]);
            if (other > best) {
                best = other;
                winner = b * kBlock + i;
            }
        }
    }
    return winner;
}

// The index at `u`, 0..1, of the cumulated weights, and the place of `u` within that index's share.
template <class Weight>
int64_t index_at(const Weight* weights, int64_t count, double& u) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += static_cast<double>(weights[i]);
    // A product rounded up to the total must still find the last index that has weight.
    const double goal = std::min(u * total, std::nextafter(total, 0.0));
    double before = 0, reached = 0;
    for (int64_t i = 0;; ++i) {
        before = reached;
        reached += static_cast<double>(weights[i]);
        if (reached > goal || i == count - 1) {
            u = (goal - before) / (reached - before);
            return i;
        }
    }
}

// The distribution of a view, less `q` times its total where that is given.
struct Law {
    const View& view;
    const Weigh weigh;
    double* sums;  // of each block
    double total;
    const int64_t* q_places = nullptr;  // ascending
    const double* q = nullptr;
    int64_t q_len = 0;

    Law(const View& view, const Scratch& scratch, float peak, double temperature)
        : view(view), weigh(peak, temperature), sums(scratch.sums) {
        total = weigh_blocks(view, weigh, view.columns ? nullptr : scratch.maxima, sums);
    }

    void weights_of(int64_t b, double* weights) const {
        float lanes[kBlock];
        for (int64_t i = 0; i < kBlock; i += kLanes) store(lanes + i, weigh(view.block(b) + i));
        for (int64_t i = 0; i < kBlock; ++i) weights[i] = lanes[i];
        for (int64_t e = first_at_least(q_places, q_places + q_len, b * kBlock) - q_places;
             e < q_len && q_places[e] < (b + 1) * kBlock; ++e) {
            double& weight = weights[q_places[e] - b * kBlock];
            weight = std::max(weight - q[e] * total, 0.0);
        }
    }
    double probability(int64_t place) const {
        if (place < 0) return 0;
        double weights[kBlock];
        weights_of(place / kBlock, weights);
        return weights[place % kBlock] / total;
    }
    // From p to max(p - q, 0), if that leaves anything.
    void subtract(const int64_t* places, const double* probs, int64_t len) {
        q_places = places;
        q = probs;
        q_len = len;
        const auto sum_again = [&] {
            for (int64_t e = 0; e < len; ++e)
                if (!e || places[e] / kBlock != places[e - 1] / kBlock) set_sum(places[e] / kBlock);
        };
        sum_again();
        double left = 0;
        for (int64_t b = 0; b < view.blocks(); ++b) left += sums[b];
        if (left > 0) return;
        q_len = 0;
        sum_again();
    }
    int64_t draw(double u) const {
        double weights[kBlock];
        const int64_t b = index_at(sums, view.blocks(), u);
        weights_of(b, weights);
        return b * kBlock + index_at(weights, kBlock, u);
    }

  private:
    void set_sum(int64_t b) {
        double weights[kBlock];
        weights_of(b, weights);
        sums[b] = 0;
        for (double weight : weights) sums[b] += weight;
    }
};

// What a drafter sent as q of one position, as `read_q` of minedraft_workers.sampling.acceptance reads it:
// ids ascend, and the usable probabilities of each are summed and normalised. Returns how many there are.
int64_t read_q(const ChoiceRequest& r, int64_t index, int64_t columns, const Scratch& scratch) {
    if (!r.q_ids) {
        scratch.q_ids[0] = r.drafts[index];
        scratch.q_probs[0] = 1;
        return r.drafts[index] >= 0 && r.drafts[index] < columns;
    }
    const int32_t* ids = r.q_ids + index * r.q_len;
    const float* probs = r.q_probs + index * r.q_len;
    int64_t order[kMaxEntries], usable = 0, len = 0;
    for (int64_t i = 0; i < r.q_len; ++i)
        if (ids[i] >= 0 && ids[i] < columns && probs[i] > 0 && probs[i] < kInfinity) order[usable++] = i;
    std::sort(order, order + usable, [&](int64_t a, int64_t b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; });
    double total = 0;
    for (int64_t i = 0; i < usable; ++i) {
        if (!len || scratch.q_ids[len - 1] != ids[order[i]]) {
            scratch.q_ids[len] = ids[order[i]];
            scratch.q_probs[len++] = 0;
        }
        scratch.q_probs[len - 1] += probs[order[i]];
        total += probs[order[i]];
    }
    for (int64_t i = 0; i < len; ++i) scratch.q_probs[i] /= total;
    return len;
}

// Under kAccept: the draft if it is accepted, else, or where there is none, a token drawn in its place.
int64_t accept_or_draw(const View& view, const ChoiceCall& call, const ChoiceRequest& r, int64_t index, float peak,
                       const Scratch& scratch, double u_accept, double u_target) {
    Law law(view, scratch, peak, r.temperature);
    if (index < r.num_drafts) {
        const int64_t draft = r.drafts[index];
        int64_t len = read_q(r, index, call.columns, scratch);
        const int64_t *ids = scratch.q_ids, *end = ids + len, *at = first_at_least(ids, end, draft);
        const double q = at < end && *at == draft ? scratch.q_probs[at - ids] : 0;
        if (q > 0 && u_accept < std::min(1.0, law.probability(view.place(draft)) / q)) return draft;
        int64_t kept = 0;  // of q what the target keeps: elsewhere there is nothing to subtract from
        for (int64_t e = 0; e < len; ++e) {
            const int64_t place = view.place(scratch.q_ids[e]);
            if (place < 0) continue;
            scratch.q_ids[kept] = place;
            scratch.q_probs[kept++] = scratch.q_probs[e];
        }
        law.subtract(scratch.q_ids, scratch.q_probs, kept);
    }
    return view.column(law.draw(u_target));
}

// Under kPropose: a draw from the top_m largest of the view, the first columns among equals; writes what they are.
int64_t propose(View& view, const ChoiceCall& call, const ChoiceRequest& r, float peak, const Scratch& scratch, double u,
                int32_t* kept, float* probs) {
    float last = -kInfinity;
    if (!view.columns || view.count > call.top_m) last = keep_largest(view, scratch, peak, call.top_m);
    int64_t num_larger = 0, count = 0;
    for (int64_t i = 0; i < view.count; ++i) num_larger += view.values[i] > last;
    int64_t order[kMaxEntries], num_equal = std::min(call.top_m, view.count) - num_larger;
    for (int64_t i = 0; i < view.count; ++i)
        if (view.values[i] > last || num_equal-- > 0) order[count++] = i;
    std::sort(order, order + count, [&](int64_t a, int64_t b) {
        return view.values[a] != view.values[b] ? view.values[a] > view.values[b] : a < b;
    });
    double weights[kMaxEntries], total = 0;
    for (int64_t i = 0; i < count; ++i)
        total += weights[i] = std::exp((static_cast<double>(view.values[order[i]]) - peak) / r.temperature);
    for (int64_t i = 0; i < count; ++i) {
        kept[i] = view.columns[order[i]];
        probs[i] = static_cast<float>(weights[i] / total);
    }
    return kept[index_at(probs, count, u)];
}

// The column chosen at the index-th position; -1 if its logits are not usable: NaN, infinity, or nothing else.
int64_t choose_column(const ChoiceCall& call, const ChoiceRequest& r, int64_t number, int64_t index,
                      const Scratch& scratch) {
    View view(r.logits + index * r.stride, call.columns);
    const uint64_t position = static_cast<uint64_t>(r.position + index);
    const auto bits = [&](int which, Purpose purpose) {
        return r.numbers ? r.numbers[2 * index + which] : random_bits(r.seed, position, purpose);
    };
    const bool keeps_all = (r.top_k <= 0 || r.top_k >= call.columns) && !(r.top_p < 1) && std::isinf(r.log_min_p);
    if (r.rule == kCoupled && keeps_all) {
        const Noise noise(view, call.hashes, scratch, bits(0, kTokenNoise), r.temperature);
        const float peak = find_bounds(view, noise, scratch.maxima);
        return std::isfinite(peak) ? place_of_winner(view, noise, scratch.maxima, peak) : -1;
    }
    const float peak = find_maxima(view, scratch.maxima);
    if (!std::isfinite(peak)) return -1;
    if (r.rule == kPeak) return place_of_peak(view, scratch.maxima, peak);
    if (!keeps_all) truncate(view, scratch, r, peak);
    if (r.rule == kCoupled) {
        const Noise noise(view, call.hashes, scratch, bits(0, kTokenNoise), r.temperature);
        find_bounds(view, noise, scratch.maxima);
        return view.column(place_of_winner(view, noise, scratch.maxima, peak));
    }
    if (r.rule == kAccept)
        return accept_or_draw(view, call, r, index, peak, scratch, unit(bits(0, kAcceptance)), unit(bits(1, kTarget)));
    const int64_t row = number * call.top_m;
    return propose(view, call, r, peak, scratch, unit(bits(0, kDraft)), call.kept + row, call.probs + row);
}

void choose(const ChoiceCall& call, int64_t number, uint8_t* memory) {
    const ChoiceRequest& r = call.requests[number];
    const Scratch scratch(memory, call.columns);
    for (int64_t i = number * call.top_m; i < (number + 1) * call.top_m; ++i) {
        call.kept[i] = -1;
        call.probs[i] = 0;
    }
    for (int64_t index = 0; index <= r.num_drafts; ++index) {
        const int64_t column = choose_column(call, r, number, index, scratch);
        call.counts[number] = column < 0 ? 0 : index + 1;
        if (column < 0) return;
        call.tokens[r.first_row + index] = column;
        if (index < r.num_drafts && column != r.drafts[index]) return;
    }
}

}  // namespace choosing
}  // namespace
}  // namespace minedraft
