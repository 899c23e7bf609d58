// Keys and values of one layer, in blocks, laid out as a tile of `multiply` reads weights.
//
// A block holds `block_size` tokens, stored as if it were the next multiple of 16 (the rest stays unused).
// Per block and key head, both in one piece of padded_size * dim numbers, at (block * heads + head):
//
//   keys    tile of 16 tokens after tile; in a tile, dimension (pair) after dimension:
//             bfloat16  t0d0 t0d1 t1d0 t1d1 ... t15d0 t15d1 | t0d2 t0d3 ...    [padded/16][dim/2][16][2]
//             float32   t0d0 t1d0 ... t15d0 | t0d1 t1d1 ...                    [padded/16][dim][16]
//   values  token (pair) after token:
//             bfloat16  t0d0 t1d0 t0d1 t1d1 ... | t2d0 t3d0 ...                [padded/2][dim][2]
//             float32   t0d0 t0d1 ... | t1d0 t1d1 ...                          [padded][dim]
//
// So scores are sums over dimensions with a token in each lane, and the mix is a sum over tokens with a
// dimension in each lane: neither needs its data turned round. No kernel computes with a number beyond a
// request's last token, so whatever a block held before cannot matter, not even NaN.
#pragma once

#include "rows.h"
#include "tile.h"

namespace minedraft {
namespace {

struct CacheView {
    const Cache& cache;
    int64_t padded, key_bytes, value_bytes;  // of one block and head

    explicit CacheView(const Cache& c)
        : cache(c),
          padded(round_up(c.block_size, kStrip)),
          key_bytes(padded * c.key_dim * bytes_of(c.dtype)),
          value_bytes(padded * c.value_dim * bytes_of(c.dtype)) {}

    uint8_t* keys(int64_t block, int64_t head) const { return cache.keys + (block * cache.heads + head) * key_bytes; }
    uint8_t* values(int64_t block, int64_t head) const {
        return cache.values + (block * cache.heads + head) * value_bytes;
    }
};

// The first `tokens` of a request, with the unused ends of the blocks before the last.
inline int64_t padded_tokens(const CacheView& view, int64_t tokens) {
    const int64_t size = view.cache.block_size;
    return tokens / size * view.padded + tokens % size;
}

// `Inputs` is 2 where numbers go in pairs.
template <class T, int Inputs>
void store_rows(const Store& a, int64_t first_row, int64_t last_row) {
    const CacheView view(a.cache);
    const int64_t key_dim = a.cache.key_dim, value_dim = a.cache.value_dim;
    for (int64_t row = first_row; row < last_row; ++row) {
        const int64_t block = a.slots[row] / a.cache.block_size, offset = a.slots[row] % a.cache.block_size;
        for (int64_t head = 0; head < a.cache.heads; ++head) {
            const T* key = static_cast<const T*>(a.key) + row * a.key_stride + head * key_dim;
            T* keys = reinterpret_cast<T*>(view.keys(block, head)) + offset / kStrip * kStrip * key_dim;
            for (int64_t d = 0; d < key_dim; d += Inputs)
                std::memcpy(keys + d * kStrip + offset % kStrip * Inputs, key + d, Inputs * sizeof(T));
            const T* value = static_cast<const T*>(a.value) + row * a.value_stride + head * value_dim;
            T* values = reinterpret_cast<T*>(view.values(block, head)) + offset / Inputs * Inputs * value_dim;
            for (int64_t d = 0; d < value_dim; ++d) values[d * Inputs + offset % Inputs] = value[d];
        }
    }
}

void store_tokens(const Store& a, int64_t first_row, int64_t last_row) {
    if (a.cache.dtype == kFloat32)
        store_rows<float, 1>(a, first_row, last_row);
    else
        store_rows<uint16_t, 2>(a, first_row, last_row);
}

}  // namespace
}  // namespace minedraft
