// The type of a stream, for what is compiled without CUDA: a cudaStream_t.
#pragma once

struct CUstream_st;

namespace bnb_core {

using Stream = CUstream_st*;

}  // namespace bnb_core
