#pragma once

namespace bnb_core::BNB_LEVEL {

constexpr int kColumns = 2 * F32::size;
constexpr int kStep = 32;

class ColumnDecoder {
  public:
    explicit ColumnDecoder(const FourBit& type) : values_(table16(type.values)) {}

    template <class Take>
    BNB_INLINE void operator()(const std::uint8_t* const* rows, std::int64_t at, Take&& take) const {
        for (int j = 0; j < kStep / 2; ++j) {
            std::uint8_t bytes[kColumns];
            for (int c = 0; c < kColumns; ++c) bytes[c] = rows[c][at + j];
            const I32 first = load_u8(bytes), second = load_u8(bytes + F32::size);
            take(2 * j, lookup(values_, shift_right<4>(first)), lookup(values_, shift_right<4>(second)));
            take(2 * j + 1, lookup(values_, first & i32(15)), lookup(values_, second & i32(15)));
        }
    }

  private:
    Table16 values_;
};

}  // namespace bnb_core::BNB_LEVEL
