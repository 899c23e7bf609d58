// The kernels of one instruction set: compiled once for each, with MINEDRAFT_ISA and the compiler's flags for it.
#if MINEDRAFT_ISA == 0
#define MINEDRAFT_TABLE kernels_scalar
#define MINEDRAFT_NAME "scalar"
#include "simd_scalar.h"
#elif MINEDRAFT_ISA == 1
#define MINEDRAFT_TABLE kernels_avx2
#define MINEDRAFT_NAME "avx2"
#include "simd_avx2.h"
#elif MINEDRAFT_ISA == 2
#define MINEDRAFT_TABLE kernels_avx512
#define MINEDRAFT_NAME "avx512"
#include "simd_avx512.h"
#elif MINEDRAFT_ISA == 3
#define MINEDRAFT_TABLE kernels_avx512_bf16
#define MINEDRAFT_NAME "avx512_bf16"
#define MINEDRAFT_DOT
#include "simd_avx512.h"
#endif

#include "attention.h"
#include "choice/choose.h"
#include "linear.h"
#include "pointwise.h"

namespace minedraft {

const Kernels MINEDRAFT_TABLE = {
    MINEDRAFT_NAME, packed_x_bytes, pack_x, linear, norm, rope, silu_mul, store_tokens, argmax, attention_scratch_bytes,
    attention, choosing::choose,
};

}  // namespace minedraft
