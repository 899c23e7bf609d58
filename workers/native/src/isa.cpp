// The kernels of one instruction set: compiled once for each, with MINEDRAFT_ISA and the compiler's flags for it.
#if MINEDRAFT_ISA == 0
#define MINEDRAFT_TABLE kernels_scalar
#define MINEDRAFT_NAME "scalar"
#include "simd/scalar.h"
#elif MINEDRAFT_ISA == 1
#define MINEDRAFT_TABLE kernels_scalar_tiles
#define MINEDRAFT_NAME "scalar_tiles"
#define MINEDRAFT_TILES
#include "simd/scalar_tiles.h"
#elif MINEDRAFT_ISA == 2
#define MINEDRAFT_TABLE kernels_avx2
#define MINEDRAFT_NAME "avx2"
#include "simd/avx2.h"
#elif MINEDRAFT_ISA == 3
#define MINEDRAFT_TABLE kernels_avx512
#define MINEDRAFT_NAME "avx512"
#include "simd/avx512.h"
#elif MINEDRAFT_ISA == 4
#define MINEDRAFT_TABLE kernels_avx512_bf16
#define MINEDRAFT_NAME "avx512_bf16"
#define MINEDRAFT_DOT
#include "simd/avx512.h"
#elif MINEDRAFT_ISA == 5
#define MINEDRAFT_TABLE kernels_amx_bf16
#define MINEDRAFT_NAME "amx_bf16"
#define MINEDRAFT_DOT
#define MINEDRAFT_TILES
#include "simd/amx.h"
#endif

#include "attention.h"
#include "choice/choose.h"
#include "linear.h"
#include "pointwise.h"
#ifdef MINEDRAFT_TILES
#include "attention_tiles.h"
#define MINEDRAFT_TILED(function) tiled::function
#else
#define MINEDRAFT_TILED(function) function
#endif

namespace minedraft {

const Kernels MINEDRAFT_TABLE = {
    MINEDRAFT_NAME, kHasTiles, MINEDRAFT_TILED(packed_x_bytes), MINEDRAFT_TILED(linear_scratch_bytes),
    MINEDRAFT_TILED(pack_x), MINEDRAFT_TILED(linear), norm, rope, silu_mul, store_tokens, argmax,
    MINEDRAFT_TILED(attention_scratch_bytes), MINEDRAFT_TILED(attention), choosing::choose,
};

}  // namespace minedraft
