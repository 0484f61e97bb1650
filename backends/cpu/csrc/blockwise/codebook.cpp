#include "codebook.h"

#include <cstring>

#include "nearest.h"

namespace bnb_core::BNB_LEVEL {

namespace {

using Method = Encoder::Method;

// Fewer numbers than it pays to fill the buckets for.
constexpr std::int64_t kFewNumbers = 2048;
constexpr std::uint32_t kOneBits = 0x3F800000u;

// Distinct values in ascending order, and their codes. NaN counts as Inf: nearest to nothing.
std::int32_t sort_values(Encoder& encoder, const float* code, std::int32_t size, float* values) {
    const auto value_of = [&](std::int32_t i) { return code[i] == code[i] ? code[i] : float_of(kInfinityBits); };
    std::int32_t sorted = 1;
    while (sorted < size && value_of(sorted - 1) < value_of(sorted)) ++sorted;
    encoder.direct = sorted == size;
    for (std::int32_t i = 0; i < sorted; ++i) {
        values[i] = value_of(i);
        encoder.codes[i] = i;
    }
    std::int32_t count = sorted;
    for (std::int32_t i = sorted; i < size; ++i) {
        const float value = value_of(i);
        std::int32_t at = count;
        while (at > 0 && value < values[at - 1]) --at;
        if (at > 0 && value == values[at - 1]) continue;
        for (std::int32_t j = count; j > at; --j) {
            values[j] = values[j - 1];
            encoder.codes[j] = encoder.codes[j - 1];
        }
        values[at] = value;
        encoder.codes[at] = i;
        ++count;
    }
    return count;
}

std::int32_t position_of_zero(const Encoder& encoder) {
    std::int32_t position = 0;
    while (position < 255 && encoder.boundaries[position] < 0.0f) ++position;
    return position;
}

// The buckets of the numbers of one sign, from 0 outwards; false where one would need two boundaries.
bool fill(Encoder& encoder, std::int32_t position, std::int32_t step, std::int32_t count, std::int32_t buckets) {
    const std::int32_t low_bits = (1 << encoder.shift) - 1;
    std::int32_t* bucket = encoder.bucket + (step < 0 ? encoder.negative : 0);
    std::int32_t filled = 0;
    for (std::int32_t i = step < 0 ? position - 1 : position; i >= 0 && i < count; i += step) {
        const std::uint32_t boundary = bits_of(encoder.boundaries[i]) & 0x7FFFFFFFu;
        if (boundary > kOneBits) break;
        const std::int32_t at = static_cast<std::int32_t>(boundary >> encoder.shift) - encoder.first;
        if (at < filled) return false;
        for (; filled < at; ++filled) bucket[filled] = position << encoder.shift;
        const std::int32_t low = static_cast<std::int32_t>(boundary) & low_bits;
        bucket[filled++] =
            step < 0 ? ((position - 1) << encoder.shift) + low : (position << encoder.shift) + low_bits - low;
        position += step;
    }
    for (; filled < buckets; ++filled) bucket[filled] = position << encoder.shift;
    return true;
}

bool make_buckets(Encoder& encoder, std::int32_t boundaries) {
    const std::int32_t zero = position_of_zero(encoder);
    std::uint32_t smallest = kOneBits;
    for (std::int32_t i = zero > 0 ? zero - 1 : 0; i <= zero && i < boundaries; ++i) {
        const std::uint32_t magnitude = bits_of(encoder.boundaries[i]) & 0x7FFFFFFFu;
        smallest = magnitude < smallest ? magnitude : smallest;
    }
    for (encoder.shift = 18; encoder.shift >= 16; --encoder.shift) {
        encoder.first = static_cast<std::int32_t>(smallest >> encoder.shift) - 1;
        if (encoder.first < 0) return false;
        encoder.least = float_of(static_cast<std::uint32_t>(encoder.first) << encoder.shift);
        encoder.negative = static_cast<std::int32_t>(kOneBits >> encoder.shift) - encoder.first + 1;
        if (2 * encoder.negative > Encoder::kBuckets) return false;
        if (fill(encoder, zero, 1, boundaries, encoder.negative) &&
            fill(encoder, zero, -1, boundaries, encoder.negative)) {
            return true;
        }
    }
    return false;
}

// For the default dynamic maps: 0, then decades of 1, 2, 4 ... cells (twice as many in the unsigned one), then 1; in
// the signed map the negative values mirror the positive ones. Accepted only if the arithmetic is exact for every
// number: it is monotonic, so that the boundaries and the numbers right above them tell.
template <bool is_signed>
bool make_decades(Encoder& encoder, const float* values) {
    constexpr std::int32_t zero = is_signed ? 127 : 0, last = 255 - zero;
    const float* positive = values + zero;
    const auto below = [&](std::int32_t i) { return encoder.boundaries + (zero + i - 1); };  // positive[i]
    if (positive[0] != 0.0f || positive[last] > 1.0f) return false;
    for (std::int32_t i = 1; is_signed && i <= zero; ++i) {
        if (positive[i] != -positive[-i]) return false;
    }
    encoder.least = 0.5f * *below(1);
    constexpr std::int32_t kWidest = is_signed ? 64 : 128;  // cells of the last decade
    const float widest = (positive[last - 1] - positive[last - kWidest]) / static_cast<float>(kWidest - 1);
    const float center = static_cast<float>(last - 1 + Decades<is_signed>::kSpare) + 0.5f;
    const float offset =
        65536.0f * (center - positive[last - 1] / widest) + static_cast<float>(Decades<is_signed>::kNear);
    encoder.offset = 0x1p-7f * offset;
    encoder.scale[0] =
        65536.0f * (static_cast<float>(last + Decades<is_signed>::kSpare) + 0.5f) - 256.0f * encoder.offset;
    std::int32_t starts[8];
    for (std::int32_t i = 0, begin = 1; i < 7; ++i) {
        const std::int32_t next = begin + ((is_signed ? 1 : 2) << i);
        const float units = 65536.0f * static_cast<float>(next + Decades<is_signed>::kSpare) - 32768.0f;
        starts[i] = begin;
        encoder.ends[i] = *below(begin);
        encoder.scale[i + 1] = (units - encoder.offset * static_cast<float>(2 << i)) / positive[next - 1];
        begin = next;
    }
    starts[7] = last;
    encoder.ends[7] = *below(last);
    const float from = static_cast<float>(bits_of(encoder.ends[0])), to = static_cast<float>(bits_of(encoder.ends[6]));
    const float steps = static_cast<float>(static_cast<std::int32_t>(6.0f * from / (to - from) + 0.5f));
    encoder.class_scale = steps / from;
    encoder.class_offset = 12582912.0f - steps;  // 1.5 * 2^23: an integer stands in the low bits

    const Decades<is_signed> decades(encoder);
    const auto next = [](F32 x) { return from_bits(bits(x) + i32(1)); };
    const auto guessed = [&](F32 x, std::int32_t found) {
        return !any(!(decades.guess(x) == i32(0x4B400000 + found)));
    };
    const auto position = [&](F32 x) { return decades.position(x, decades.class_of(x)); };
    const F32 one = f32(1.0f);
    if (!guessed(f32(encoder.least), 0) || !guessed(one, 7) || !guessed(next(one), 7)) return false;
    float lanes[F32::size];
    for (std::int32_t i = 0; i < F32::size; ++i) lanes[i] = static_cast<float>(i);
    const I32 lane = to_i32(load(lanes)), spare = i32(Decades<is_signed>::kSpare << 16);
    const I32 near = i32(2 * Decades<is_signed>::kNear);
    for (std::int32_t i = 0; i < 8; ++i) {
        const F32 end = f32(encoder.ends[i]);
        const I32 begin = i32(starts[i] << 16) + spare, above = position(next(end));
        if (!guessed(end, i) || !guessed(next(end), i)) return false;
        if (any(begin + near > above) || any(above > begin + i32(0xFFFF))) return false;
        for (std::int32_t j = starts[i] + 1; i < 7 && j < starts[i + 1]; j += F32::size) {
            const std::int32_t rest = starts[i + 1] - j;
            const F32 boundary = load(below(j), rest < F32::size ? rest : F32::size);
            const I32 step = shift_left<16>(lane + i32(j)) + spare;
            const Mask wrong = (step > position(next(boundary))) | !(step + near > position(boundary));
            if (any((i32(rest) > lane) & wrong)) return false;
        }
    }
    return true;
}

// Calls f(i, t) with t = x[i ...] / absmax, for n elements of a run that begins `begin` elements into the blocks; at
// the end of a block that is no multiple of F32::size the vectors overlap, the later one counts.
template <class T, class F>
BNB_INLINE void normalize(const T* x, const float* absmax, std::int64_t blocksize, std::int64_t begin, int n, F&& f) {
    std::int64_t block = begin / blocksize;
    std::int64_t left = blocksize - (begin - block * blocksize);  // of the block
    const F32 zero = f32(0.0f);
    for (int i = 0; i < n; ++block, left = blocksize) {
        const int stop = n - i > left ? i + static_cast<int>(left) : n;
        const F32 scale = f32(absmax[block]);
        const Mask some = scale > zero;
        for (; i + F32::size <= stop; i += F32::size) f(i, select(some, load(x + i) / scale, zero));
        if (i < stop) f(i, select(some, load(x + i, stop - i) / scale, zero));
        i = stop;
    }
}

template <class T, class Method>
void encode_by(Method&& method, const T* x, const float* absmax, std::int64_t blocksize, std::int64_t n,
               std::uint8_t* codes) {
    const auto prepare = [&](int i, F32 t) BNB_LAMBDA_INLINE { method.prepare(i, t); };
    std::int64_t i = 0;
    for (; n - i >= kRun; i += kRun) {
        normalize(x + i, absmax, blocksize, i, kRun, prepare);
        method.finish(kRun, codes + i);
    }
    if (i < n) {
        const int rest = static_cast<int>(n - i), padded = (rest + kGroup - 1) / kGroup * kGroup;
        for (int j = padded - kGroup; j < padded; j += F32::size) method.prepare(j, f32(0.0f));
        normalize(x + i, absmax, blocksize, i, rest, prepare);
        std::uint8_t last[kRun];
        method.finish(padded, last);
        std::memcpy(codes + i, last, static_cast<std::size_t>(rest));
    }
}

}  // namespace

std::uint8_t nearest(const Encoder& encoder, float t) {
    std::int32_t position = 0;
    for (std::int32_t step = encoder.first_step; step > 0; step >>= 1) {
        if (t > encoder.boundaries[position + step - 1]) position += step;
    }
    return static_cast<std::uint8_t>(encoder.codes[position]);
}

void make_encoder(Encoder& encoder, const float* code, std::int64_t size, std::int64_t count) {
    float values[256];
    const std::int32_t distinct = sort_values(encoder, code, static_cast<std::int32_t>(size), values);
    for (std::int32_t i = 0; i < 256; ++i) {
        encoder.boundaries[i] = i + 1 < distinct ? (values[i] + values[i + 1]) / 2.0f : float_of(kInfinityBits);
    }
    encoder.first_step = distinct > 1 ? 1 : 0;
    while (2 * encoder.first_step < distinct && distinct > 1) encoder.first_step *= 2;
    encoder.method = Method::search;
    if constexpr (F32::size >= 8) {
        if (encoder.direct && distinct == 256) {
            if (make_decades<true>(encoder, values))
                encoder.method = Method::signed_decades;
            else if (make_decades<false>(encoder, values))
                encoder.method = Method::unsigned_decades;
        }
    }
    if (encoder.method == Method::search && count >= kFewNumbers && make_buckets(encoder, distinct - 1)) {
        encoder.method = Method::buckets;
    }
}

template <class T>
void encode(const Encoder& encoder, const T* x, const float* absmax, std::int64_t blocksize, std::int64_t n,
            std::uint8_t* codes) {
    switch (encoder.method) {
        case Method::search:
            encode_by(Search(encoder), x, absmax, blocksize, n, codes);
            break;
        case Method::buckets:
            encode_by(Buckets(encoder), x, absmax, blocksize, n, codes);
            break;
        case Method::signed_decades:
            encode_by(Decades<true>(encoder), x, absmax, blocksize, n, codes);
            break;
        case Method::unsigned_decades:
            encode_by(Decades<false>(encoder), x, absmax, blocksize, n, codes);
            break;
    }
}

template <class T>
float largest_magnitude(const T* x, std::int64_t n) {
    const auto magnitude = [](F32 v) { return bits(abs(v)); };
    I32 largest[4] = {i32(0), i32(0), i32(0), i32(0)};
    std::int64_t i = 0;
    for (; n - i >= 4 * F32::size; i += 4 * F32::size) {
        for (int j = 0; j < 4; ++j) largest[j] = max(largest[j], magnitude(load(x + i + j * F32::size)));
    }
    for (; n - i >= F32::size; i += F32::size) largest[0] = max(largest[0], magnitude(load(x + i)));
    if (i < n) largest[1] = max(largest[1], magnitude(load(x + i, static_cast<int>(n - i))));
    const auto found =
        static_cast<std::uint32_t>(reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3]))));
    return float_of(found < kInfinityBits ? found : kNaNBits);
}

#define BNB_INSTANTIATE(T)                                                                                      \
    template void encode<T>(const Encoder&, const T*, const float*, std::int64_t, std::int64_t, std::uint8_t*); \
    template float largest_magnitude<T>(const T*, std::int64_t);
BNB_INSTANTIATE(float)
BNB_INSTANTIATE(float16)
BNB_INSTANTIATE(bfloat16)
#undef BNB_INSTANTIATE

}  // namespace bnb_core::BNB_LEVEL
