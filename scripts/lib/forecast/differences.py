"""Why the simulated gains differ from the published ones, pair by pair."""

_QWEN = (
    "The larger the drafter the longer its forward, so the more there is to hide: the order and the size of the gains"
    " are the paper's."
)
EXPLAINED = {
    ("qwen3-32b", "qwen3-0.6b"): (
        f"{_QWEN} Published is the best of four datasets, simulated one acceptance, 0.6. The drafter has as many layers"
        " as 1.7b and its kernels are launched one by one, so that both draft equally fast here; a little more drafting"
        " time, as sampling from 151,936 words on the drafter's device, would close the gap."
    ),
    ("qwen3-32b", "qwen3-1.7b"): (
        "One cell of this pair calibrates the engine (k = 2, without TETRIS); all others follow. With one extra draft"
        " 576 tok/s are simulated where 567 are published. The largest gain needs k = 5 and extra drafts, in both."
    ),
    ("qwen3-32b", "qwen3-4b"): (
        f"{_QWEN} Simulated is a little more than published: at k = 5 drafting takes 85 % of a verify here, and the"
        " best of TETRIS' drafts are known exactly, while a real drafter only believes to know them."
    ),
    ("llama-3.3-70b-int4", "llama-3.1-8b"): (
        "Half of the simulated gain is published. The verify is too fast here: INT4 weights are multiplied in bfloat16"
        " at the data sheet's speed, and no time is taken to unpack them, which AWQ kernels spend for every 16 rows;"
        " and the engine's 49 ms a verify were found with 16 requests, while this pair runs 64, four times the"
        " sampling, probabilities and Python. A verify that takes twice as long would give what is published."
    ),
    ("vicuna-33b", "vicuna-33b-eagle"): (
        "At k = 1 the simulator gives 7 % without TETRIS and 22 % with it, the published 7.5 and 22 %. For larger k it"
        " gives more, the paper does not: in its engine (vLLM 0.9.2) an EAGLE head's drafts get worse with k, so"
        " that sd peaks at k = 1. Here every draft is accepted as often as the first, as with a head that works."
    ),
    ("vicuna-13b", "vicuna-13b-eagle"): (
        "As for the 33b. The paper's scripts run sequential EAGLE with 64 requests per batch and overlapped EAGLE with"
        " 16; the gains published can only come from equal ones, as assumed here: sd with 64 gives two to three"
        " times the throughput of two batches of 16."
    ),
}
