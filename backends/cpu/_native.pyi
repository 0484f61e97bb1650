# Pointers are addresses (`Tensor.data_ptr()`), sizes count elements; every call releases the GIL.

def dequantize_blockwise(
    A: int, absmax: int, code: int, code_size: int, blocksize: int, n: int, dtype: str, out: int
) -> None: ...
