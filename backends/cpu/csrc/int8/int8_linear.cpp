#include "int8_linear.h"

#include <type_traits>

#include "row.h"
#include "scale.h"

namespace bnb_core::BNB_LEVEL {

Int8Linear int8_linear;

namespace {

constexpr std::int64_t kLeastElements = 1 << 14;  // worth a thread

// Elements of a row as codes, for WidenedRow::write.
template <class T, class Code>
struct RowCodes {
    const T* x;
    Code code;

    BNB_INLINE I32 operator()(std::int64_t i) const { return code(load(x + i)); }
    BNB_INLINE I32 operator()(std::int64_t i, int n) const { return code(load(x + i, n)); }
};

struct Zeros {
    BNB_INLINE I32 operator()(std::int64_t, int = 0) const { return i32(0); }
};

template <class T>
void encode(const T* x, float absmax, float limit, const WidenedRow& row) {
    if (!(absmax > 0)) {
        row.write(Zeros{});
        return;
    }
    with_code(absmax, limit, [&](const auto& code) BNB_LAMBDA_INLINE {
        row.write(RowCodes<T, std::decay_t<decltype(code)>>{x, code});
    });
}

template <class T>
struct Linear {
    const T* A;
    std::int64_t rows, K;
    double threshold;
    Scratch scratch;
    int threads;
    Scaling scaling;
    const std::int8_t* CB;

    std::int64_t least_rows() const { return kLeastElements / (K + 1) + 1; }

    void multiply_block(const Widened& block, std::int64_t first, const float* absmax, const Outliers& outliers) const {
        Scaling of_block = scaling.from(first);
        of_block.row_stats = absmax;
        product(block, CB, scaling.N, threads,
                [&](std::int64_t row, int count, std::int64_t column, int columns, const std::int32_t* sums) {
                    write_scaled(of_block, outliers, row, count, column, columns, sums);
                });
    }

    void run() const {
        each_block(rows, K, sizeof(float), scratch, [&](const Widened& block, std::int64_t first) {
            float* const absmax = block.end();
            parallel(block.rows, least_rows(), threads, [&](std::int64_t begin, std::int64_t end) {
                for (; begin < end; ++begin) {
                    const T* x = A + (first + begin) * K;
                    absmax[begin] = absmax_of(largest_magnitude(x, K));
                    encode(x, absmax[begin], float_of(kInfinityBits), WidenedRow(block, begin));
                }
            });
            multiply_block(block, first, absmax, Outliers{});
        });
    }

    // Outlier columns are those of all rows together, so that these are read twice.
    void run_with_threshold() const {
        std::int64_t* const columns = static_cast<std::int64_t*>(scratch.memory);
        float* const absmax = reinterpret_cast<float*>(columns + K);
        std::uint8_t* const marks = reinterpret_cast<std::uint8_t*>(absmax + rows);
        const Scratch rest{marks + K, scratch.size - (9 * K + 4 * rows)};
        std::memset(marks, 0, static_cast<std::size_t>(K));
        parallel(rows, least_rows(), threads, [&](std::int64_t begin, std::int64_t end) {
            for (; begin < end; ++begin) {
                absmax[begin] = absmax_of(largest_inlier(A + begin * K, K, threshold_of(threshold), marks));
            }
        });
        std::int64_t count = 0;
        for (std::int64_t k = 0; k < K; ++k) {
            if (marks[k]) columns[count++] = k;
        }
        each_block(rows, K, 4 * count, rest, [&](const Widened& block, std::int64_t first) {
            float* const values = block.end();
            parallel(block.rows, least_rows(), threads, [&](std::int64_t begin, std::int64_t end) {
                for (; begin < end; ++begin) {
                    const T* x = A + (first + begin) * K;
                    const WidenedRow row(block, begin);
                    encode(x, absmax[first + begin], static_cast<float>(threshold), row);
                    for (std::int64_t o = 0; o < count; ++o) {
                        row.clear(columns[o]);
                        values[begin * count + o] = to_float(x[columns[o]]);
                    }
                }
            });
            multiply_block(block, first, absmax + first, Outliers{values, columns, count, CB, K, false});
        });
    }
};

}  // namespace

void int8_linear(const void* A, DType dtype, std::int64_t rows, std::int64_t N, std::int64_t K, const std::int8_t* CB,
                 const float* SCB, const void* bias, DType bias_dtype, double threshold, void* out, Scratch scratch,
                 int threads) {
    const Scaling scaling{nullptr, SCB, bias, bias_dtype, out, dtype, N};
    visit(dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const Linear<T> linear{static_cast<const T*>(A), rows, K, threshold, scratch, threads, scaling, CB};
        if (threshold > 0) {
            linear.run_with_threshold();
        } else {
            linear.run();
        }
    });
}

}  // namespace bnb_core::BNB_LEVEL
