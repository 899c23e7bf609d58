// What the kernels that choose tokens are told, and the random numbers that they choose by.
//
// Python writes the requests: every field has eight bytes.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace minedraft {

enum Rule : int64_t {
    kPeak = 0,     // the first of the largest logits
    kCoupled = 1,  // the largest logit + noise that drafter and verifier share
    kAccept = 2,   // accept a draft with probability min(1, p / q), else draw from max(p - q, 0)
    kPropose = 3,  // draw from the renormalised top of the distribution, and say what that was
};

// One request's positions: `num_drafts` drafts to decide about, then one more token.
struct ChoiceRequest {
    const float* logits;  // [num_drafts + 1, columns]
    int64_t stride;
    const int64_t* drafts;  // [num_drafts], columns; one that is none is never accepted
    int64_t num_drafts;
    const int32_t* q_ids;  // [num_drafts, q_len], or null: q is 1 on each draft
    const float* q_probs;
    int64_t q_len;
    int64_t rule;
    uint64_t seed;
    int64_t position;  // of the first of the tokens
    double temperature;
    int64_t top_k;          // 0: all
    double top_p;           // 1: all
    double log_min_p;       // -infinity: all
    int64_t first_row;      // where its tokens begin in `ChoiceCall::tokens`
    const uint64_t* numbers;  // [num_drafts + 1, 2] to choose by, or null: those of seed and position
};

struct ChoiceCall {
    const ChoiceRequest* requests;
    int64_t num_requests, columns;
    const int32_t* hashes;  // [columns], of the columns' tokens, for the noise
    int64_t* tokens;        // [rows]: the chosen columns
    int64_t* counts;        // [num_requests]: how many were chosen; 0 where a row is not usable
    int64_t top_m;
    int32_t* kept;  // [num_requests, top_m], under kPropose: columns, most probable first; after them -1
    float* probs;   // the same: their probabilities; after them 0
};

// Columns that have one maximum and one sum of weights.
constexpr int64_t kBlock = 128;
constexpr int64_t kMaxEntries = 1024;  // of a q, and of top_m

// As in minedraft_workers.sampling.randomness.
enum Purpose : uint64_t { kTokenNoise = 1, kDraft = 2, kAcceptance = 3, kTarget = 4 };
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

inline uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
}
inline uint64_t random_bits(uint64_t seed, uint64_t position, uint64_t purpose) {
    return mixed(mixed(mixed(seed + kGolden) + (position + 1) * kGolden) + purpose * kGolden);
}

// A thread's memory: float and int32 for each column, as often as `Scratch` in truncate.h has them.
inline int64_t padded_columns(int64_t columns) { return round_up(columns, kBlock) + kBlock; }
inline int64_t num_blocks(int64_t columns) { return (columns + kBlock - 1) / kBlock; }
inline size_t choice_scratch_bytes(int64_t columns) {
    const int64_t blocks = round_up(num_blocks(columns), kBlock) + kBlock;
    return static_cast<size_t>(padded_columns(columns) * 20 + blocks * 12 + kMaxEntries * 16);
}

}  // namespace minedraft
