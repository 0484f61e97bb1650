// From numbers to the nearest codes of a codebook, and back; shared by all that stores 8 bits an element.
//
//   Encoder encoder;
//   make_encoder(encoder, code, size, n);                       // once a call; n: about how many numbers follow
//   encode(encoder, x, absmax, blocksize, n, codes);            // codes[i]: nearest to x[i] / absmax[i / blocksize]
//
//   float table[256];
//   make_decoder(table, code, size);
//   F32 values = gather(table, codes);                          // of simd.h: F32::size values
//
// The nearest code is exact. The boundary between neighbouring values is their midpoint, rounded to fp32; a number on
// it belongs to the lower value, and among equal values the lowest code counts.
#pragma once

#include <cstdint>

#include "native/dtype.h"

namespace bnb_core::BNB_LEVEL {

// A codebook made ready for searching. All methods find the same codes.
struct Encoder {
    enum class Method {
        search,          // bisection: any codebook, ready at once
        buckets,         // a table over the leading bits of a number; each bucket holds one boundary at most
        signed_decades,  // arithmetic for the dynamic maps: 7 decades of equal cells
        unsigned_decades
    };
    static constexpr std::int32_t kBuckets = 6144;

    Method method;
    bool direct;              // the position of a value among all values is its code
    std::int32_t first_step;  // of the bisection
    float boundaries[256];    // between the distinct values in ascending order, then infinities
    std::int32_t codes[256];  // of the distinct values in ascending order

    // Buckets: those of positive numbers, then those of negative ones.
    std::int32_t shift;  // bits below a bucket's number
    std::int32_t first;  // leading bits of the first bucket
    std::int32_t negative;
    std::int32_t bucket[kBuckets];

    // Decades.
    float least;                      // a magnitude that belongs to 0
    float class_scale, class_offset;  // of the first guess
    float offset;                     // of class 0
    float ends[8], scale[8];          // ends of classes 0 to 7, scale of classes 8 (and 0), 1 to 7
};

// code: 1 to 256 values. count: numbers to encode with it; the more, the more preparation pays.
void make_encoder(Encoder& encoder, const float* code, std::int64_t size, std::int64_t count);

// codes[i] = nearest(x[i] / absmax[i / blocksize]), one true division; the code of 0 where absmax is 0 or NaN.
// |x[i]| <= absmax of its block.
template <class T>
void encode(const Encoder& encoder, const T* x, const float* absmax, std::int64_t blocksize, std::int64_t n,
            std::uint8_t* codes);

std::uint8_t nearest(const Encoder& encoder, float t);

// The largest of n magnitudes; NaN where one is NaN or Inf.
template <class T>
float largest_magnitude(const T* x, std::int64_t n);

// A code past the end of a short codebook decodes to NaN.
BNB_INLINE void make_decoder(float (&table)[256], const float* code, std::int64_t size) {
    for (std::int64_t i = 0; i < 256; ++i) table[i] = i < size ? code[i] : float_of(kNaNBits);
}

}  // namespace bnb_core::BNB_LEVEL
