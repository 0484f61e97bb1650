#include "gemm_4bit.h"

#include "gemm_4bit_few_rows.h"
#include "packed_rows.h"

namespace bnb_core::BNB_LEVEL {

Gemm4bit gemm_4bit;

namespace {

// Work is counted in weights that one row is multiplied with; decoding one costs about as much as four rows.
constexpr std::int64_t kDecodeRows = 4;
constexpr std::int64_t kLeastWork = 1 << 18;  // worth a thread: about 15 µs

// Rows whose packed values for kDepth stay in the second-level cache (252 KB of 512) while strips pass by.
constexpr std::int64_t kBlockTiles = 252 / kTileRows;
// Strips that share a run of kDepth of A. One, where all of A stays in the cache: its bytes are then read in order.
constexpr std::int64_t kSharingStrips = 16;
constexpr std::int64_t kCachedFloats = 1 << 16;

// Memory of floats: on the stack where that is enough, for a small product.
class Scratch {
  public:
    explicit Scratch(std::int64_t size) : floats(size <= kSmall ? small_ : new float[static_cast<std::size_t>(size)]) {}
    ~Scratch() {
        if (floats != small_) delete[] floats;
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

  private:
    static constexpr std::int64_t kSmall = 4096;
    float small_[kSmall];

  public:
    float* const floats;
};

template <class T>
struct Product {
    const float* packed;  // A
    Tiles tiles;
    const Weight4bit& weight;
    const void* bias;
    DType bias_dtype;
    T* out;
    ColumnDecoder decoder;

    void load_bias(std::int64_t n0, int columns, float* to) const {
        for (int c = 0; c < kColumns; ++c) to[c] = 0.0f;
        if (bias == nullptr) return;
        visit(bias_dtype, [&](auto type) {
            using B = typename decltype(type)::type;
            for (int c = 0; c < columns; ++c) to[c] = to_float(static_cast<const B*>(bias)[n0 + c]);
        });
    }

    // Rounds rows of sums [.., kColumns], with the bias added, to out.
    void finish(const float* sums, const float* bias_row, std::int64_t row, std::int64_t rows, std::int64_t n0) const {
        const int columns = static_cast<int>(std::min<std::int64_t>(kColumns, weight.N - n0));
        for (std::int64_t m = 0; m < rows; ++m) {
            T* to = out + (row + m) * weight.N + n0;
            for (int v = 0; v < kColumns; v += F32::size) {
                F32 sum = load(sums + m * kColumns + v);
                if (bias != nullptr) sum = sum + load(bias_row + v);
                if (columns >= v + F32::size) {
                    store(to + v, sum);
                } else if (columns > v) {
                    store(to + v, sum, columns - v);
                }
            }
        }
    }

    template <int rows = kFewRows>
    void few_rows(std::int64_t M, std::int64_t begin, std::int64_t end) const {
        if constexpr (rows > 1) {
            if (M < rows) return few_rows<rows - 1>(M, begin, end);
        }
        const RowDecoder row_decoder(four_bit(weight.type));
        for (std::int64_t s = begin; s < end; ++s) {
            const std::int64_t n0 = s * kColumns;
            const int columns = static_cast<int>(std::min<std::int64_t>(kColumns, weight.N - n0));
            float sums[rows * kColumns] = {}, bias_row[kColumns];
            few_rows_product<rows>(packed, row_decoder, weight, n0, columns, sums);
            load_bias(n0, columns, bias_row);
            finish(sums, bias_row, 0, rows, n0);
        }
    }

    // Tiles tile0 … tile1 - 1 times the strips begin … end - 1; `sums` holds one row of kColumns for each of theirs.
    void panels(std::int64_t tile0, std::int64_t tile1, std::int64_t begin, std::int64_t end, float* sums) const {
        const std::int64_t row0 = tiles.row(tile0), rows = tiles.row(tile1) - row0;
        alignas(64) float panel[kDepth * kColumns];
        std::int64_t k0 = 0;
        do {
            const std::int64_t depth = std::min<std::int64_t>(kDepth, weight.K - k0);
            const bool last = k0 + depth == weight.K;
            for (std::int64_t s = begin; s < end; ++s) {
                const std::int64_t n0 = s * kColumns;
                Strip(weight, n0).decode(decoder, k0, depth, panel);
                if (s + 1 < end) {
                    Strip(weight, n0 + kColumns).fetch(k0, depth);
                } else if (!last) {
                    Strip(weight, begin * kColumns).fetch(k0 + depth, depth);
                }
                float bias_row[kColumns];
                if (last) load_bias(n0, static_cast<int>(std::min<std::int64_t>(kColumns, weight.N - n0)), bias_row);
                for (std::int64_t t = tile0; t < tile1; ++t) {
                    const int height = tiles.height(t);
                    alignas(64) float tile[kTileRows * kColumns];
                    tile_product_of(height)(packed + tiles.at(k0, depth, t), panel, depth, tile);
                    float* sum = sums + ((s - begin) * rows + tiles.row(t) - row0) * kColumns;
                    if (k0 > 0) add(sum, tile, height);
                    if (last) {
                        finish(tile, bias_row, tiles.row(t), height, n0);
                    } else {
                        std::copy_n(tile, height * kColumns, sum);
                    }
                }
            }
            k0 += depth;
        } while (k0 < weight.K);
    }

    static void add(const float* sum, float* tile, int height) {
        for (int i = 0; i < height * kColumns; i += F32::size) store(tile + i, load(sum + i) + load(tile + i));
    }
};

template <class T>
void multiply(const T* A, std::int64_t M, const Weight4bit& weight, const void* bias, DType bias_dtype, T* out,
              int threads) {
    const Tiles tiles(M);
    const std::int64_t strips = (weight.N + kColumns - 1) / kColumns;
    const std::int64_t blocks = (tiles.count + kBlockTiles - 1) / kBlockTiles;
    const std::int64_t block_rows = std::min(M, kBlockTiles * kTileRows);
    const std::int64_t work = (M + kDecodeRows) * weight.N * weight.K;
    const std::int64_t useful = std::min<std::int64_t>(threads, std::min(work / kLeastWork, blocks * strips));
    const std::int64_t parts = std::max<std::int64_t>(1, useful);
    const bool few = few_rows(M, weight);
    const std::int64_t chunk = M * weight.K <= kCachedFloats ? 1 : kSharingStrips;
    const std::int64_t sums = few || weight.K <= kDepth ? 0 : std::min(chunk, strips) * block_rows * kColumns;
    const std::int64_t packed_size = M * weight.K;
    const Scratch scratch(packed_size + parts * sums);
    if (few) {
        pack_runs(A, M, weight.K, scratch.floats);
    } else {
        pack_rows(A, weight.K, tiles, static_cast<int>(parts), scratch.floats);
    }
    const Product<T> product{
        scratch.floats, tiles, weight, bias, bias_dtype, out, ColumnDecoder(four_bit(weight.type))};
    if (few) {
        parallel(strips, (strips + parts - 1) / parts, threads,
                 [&](std::int64_t begin, std::int64_t end) { product.few_rows(M, begin, end); });
        return;
    }
    // A part is a run of the strips of all blocks of rows, one block after the other.
    parallel(parts, 1, threads, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t part = first; part < last; ++part) {
            std::int64_t i = blocks * strips * part / parts;
            const std::int64_t end = blocks * strips * (part + 1) / parts;
            while (i < end) {
                const std::int64_t block = i / strips, s = i % strips;
                const std::int64_t stop = std::min(s + std::min(chunk, end - i), strips);
                product.panels(tiles.count * block / blocks, tiles.count * (block + 1) / blocks, s, stop,
                               scratch.floats + packed_size + part * sums);
                i += stop - s;
            }
        }
    });
}

}  // namespace

void gemm_4bit(const void* A, DType dtype, std::int64_t M, const Weight4bit& weight, const void* bias, DType bias_dtype,
               void* out, int threads) {
    if (M == 0 || weight.N == 0) return;
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        multiply(static_cast<const T*>(A), M, weight, bias, bias_dtype, static_cast<T*>(out), threads);
    });
}

}  // namespace bnb_core::BNB_LEVEL
