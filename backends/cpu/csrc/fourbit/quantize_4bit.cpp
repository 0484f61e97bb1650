#include "quantize_4bit.h"

#include <algorithm>
#include <cstring>

#include "../runtime/parallel.h"
#include "pack.h"
#include "search.h"

namespace bnb_core::BNB_LEVEL {

Quantize4bit quantize_4bit;

namespace {

constexpr std::int64_t kLeastElements = 1 << 14;  // worth a thread

class Encoder {
  public:
    explicit Encoder(const FourBit& type) : boundaries_(type), packer_(type) {
        const float zeros[Packer::count] = {};
        std::uint8_t bytes[Packer::count / 2];
        run(zeros, Packer::count, bytes, [](F32 x) { return x; });
        zeros_ = bytes[0];
    }

    // Blocks of A, all but the last of `blocksize` elements, count in all. In groups: the scales of the next blocks are
    // under way while a block is encoded, for the maximum of a block and the division wait for one another.
    template <class T>
    void blocks(const T* A, std::int64_t count, std::int64_t blocksize, std::uint8_t* packed, float* absmax) const {
        const std::int64_t group =
            std::min<std::int64_t>(kGroup, std::max<std::int64_t>(1, kGroupElements / blocksize));
        for (std::int64_t first = 0; first < count; first += group * blocksize) {
            float scales[kGroup] = {}, inverses[kGroup];
            const std::int64_t stop = std::min(count, first + group * blocksize);
            int b = 0;
            for (std::int64_t i = first; i < stop; i += blocksize)
                scales[b++] = largest_magnitude(A + i, std::min(blocksize, stop - i));
            for (int i = 0; i < b; i += F32::size) store(inverses + i, f32(1.0f) / load(scales + i));
            b = 0;
            for (std::int64_t i = first; i < stop; i += blocksize, ++b) {
                *absmax++ = block(A + i, std::min(blocksize, stop - i), scales[b], inverses[b], packed + i / 2);
            }
        }
    }

  private:
    static constexpr int kGroup = 32;
    static constexpr std::int64_t kGroupElements = 2048;

    // The codes of one block; what is stored as its absmax.
    template <class T>
    BNB_INLINE float block(const T* A, std::int64_t count, float scale, float inverse, std::uint8_t* packed) const {
        if (scale >= 0x1p-126f && scale <= 0x1p126f) {
            const F32 factor = f32(inverse);
            run(A, count, packed, [&](F32 x) { return x * factor; });
            return scale;
        }
        return rare_block(A, count, scale, packed);
    }

    template <class T>
    float rare_block(const T* A, std::int64_t count, float scale, std::uint8_t* packed) const {
        if (scale > 0.0f && scale <= float_of(kInfinityBits - 1)) {
            const F32 divisor = f32(scale);
            run(A, count, packed, [&](F32 x) { return x / divisor; });
            return scale;
        }
        std::memset(packed, zeros_, static_cast<std::size_t>((count + 1) / 2));
        return scale == 0.0f ? 0.0f : float_of(kNaNBits);
    }

    template <class T>
    BNB_INLINE static float largest_magnitude(const T* A, std::int64_t count) {
        const I32 without_sign = i32(0x7FFFFFFF);
        I32 largest = i32(0);
        std::int64_t i = 0;
        for (; i + F32::size <= count; i += F32::size) largest = max(largest, bits(load(A + i)) & without_sign);
        if (i < count) largest = max(largest, bits(load(A + i, static_cast<int>(count - i))) & without_sign);
        return float_of(static_cast<std::uint32_t>(reduce_max(largest)));
    }

    template <class T, class Normalize>
    BNB_INLINE void run(const T* A, std::int64_t count, std::uint8_t* packed, Normalize normalize) const {
        std::int64_t i = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
        for (; i + 64 <= count; i += 64) part<64>(A + i, packed + i / 2, normalize);
#endif
        for (; i + Packer::count <= count; i += Packer::count) part<Packer::count>(A + i, packed + i / 2, normalize);
        if (i < count) {
            T last[Packer::count] = {};
            std::uint8_t bytes[Packer::count / 2];
            std::memcpy(last, A + i, static_cast<std::size_t>(count - i) * sizeof(T));
            part<Packer::count>(last, bytes, normalize);
            std::memcpy(packed + i / 2, bytes, static_cast<std::size_t>((count - i + 1) / 2));
        }
    }

    template <int size, class T, class Normalize>
    BNB_INLINE void part(const T* A, std::uint8_t* packed, Normalize normalize) const {
        constexpr int vectors = size / F32::size, together = vectors < 4 ? vectors : 4;
        I32 positions[vectors];
        for (int k = 0; k < vectors; k += together) {
            F32 t[together];
            for (int i = 0; i < together; ++i) t[i] = normalize(load(A + (k + i) * F32::size));
            boundaries_.below(t, positions + k);
        }
        packer_.pack(positions, packed);
    }

    Boundaries boundaries_;
    Packer packer_;
    std::uint8_t zeros_;
};

}  // namespace

void quantize_4bit(const void* A, DType dtype, std::int64_t n, std::int64_t blocksize, QuantType type,
                   std::uint8_t* packed, std::int64_t size, float* absmax, int threads) {
    const std::int64_t blocks = (n + blocksize - 1) / blocksize;
    visit(dtype, [&](auto t) {
        using T = typename decltype(t)::type;
        parallel(blocks, kLeastElements / blocksize, threads, [&](std::int64_t begin, std::int64_t end) {
            const Encoder encoder(four_bit(type));
            const std::int64_t first = begin * blocksize, count = std::min(n, end * blocksize) - first;
            encoder.blocks(static_cast<const T*>(A) + first, count, blocksize, packed + first / 2, absmax + begin);
        });
    });
    for (std::int64_t i = (n + 1) / 2; i < size; ++i) packed[i] = 0;
}

}  // namespace bnb_core::BNB_LEVEL
