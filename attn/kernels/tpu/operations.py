"""What Mosaic has for TPUs of the operations that a function of pairs is made of."""

from attn.kernels.instead import OF_BOTH, Operations

HAS = frozenset(
    """
    abs add add_any and atan2 broadcast_in_dim ceil clamp clz convert_element_type cos div eq erf
    erf_inv exp exp2 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg
    nextafter not or population_count pow reduce_sum rem reshape round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sqrt square squeeze stop_gradient sub tan
    tanh threefry2x32 xor
    """.split()  # noqa: SIM905
)
"""Operations on pairs that Mosaic has for TPUs, as of jax 0.10."""
DTYPES = frozenset(("bool", "int32", "uint32", "float32", "bfloat16"))
OPERATIONS = Operations(HAS, DTYPES, OF_BOTH)
"""Those of a kernel."""
