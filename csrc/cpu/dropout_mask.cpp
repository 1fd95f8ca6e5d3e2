// Which attention weights survive dropout: 16 bytes of Philox-4x32-7 for each counter (column group, row, head).
// Reference: dqcore.ops.dropout_mask.
#include <algorithm>
#include <array>

#include "cpu/parallel.h"
#include "ops.h"

namespace dqcore::cpu {
namespace {

constexpr int kRounds = 7;
constexpr int kCounters = 4;  // that cover kColumns columns of a row
constexpr int64_t kColumns = 64;
constexpr int64_t kCost = 8;  // a weight takes as long as that many bytes that are moved

using Words = std::array<uint32_t, kCounters>;

// Four counters at once, (first + 0 .. 3, row, head, offset), which the compiler keeps in vectors.
std::array<Words, 4> philox(uint32_t first, uint32_t row, uint32_t head, uint32_t offset, uint64_t seed) {
  Words a = {first, first + 1, first + 2, first + 3}, b, c, d;
  b.fill(row), c.fill(head), d.fill(offset);
  uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kCounters; ++i) {
      const uint64_t left = static_cast<uint64_t>(a[i]) * 0xD2511F53u;
      const uint64_t right = static_cast<uint64_t>(c[i]) * 0xCD9E8D57u;
      a[i] = static_cast<uint32_t>(right >> 32) ^ b[i] ^ low;
      b[i] = static_cast<uint32_t>(right);
      c[i] = static_cast<uint32_t>(left >> 32) ^ d[i] ^ high;
      d[i] = static_cast<uint32_t>(left);
    }
    low += 0x9E3779B9u, high += 0xBB67AE85u;
  }
  return {a, b, c, d};
}

// The bytes of kColumns columns: those of column 8 o + 2 i + {0, 1} are half o of counter i's 16 bytes.
std::array<uint8_t, kColumns> bytes_of(const std::array<Words, 4>& words) {
  std::array<uint8_t, kColumns> bytes;
  for (int octet = 0; octet < 8; ++octet) {
    for (int i = 0; i < kCounters; ++i) {
      const uint32_t half = words[octet / 2][i] >> (octet % 2 * 16);
      bytes[8 * octet + 2 * i] = static_cast<uint8_t>(half);
      bytes[8 * octet + 2 * i + 1] = static_cast<uint8_t>(half >> 8);
    }
  }
  return bytes;
}

void drop(const uint8_t* bytes, int64_t count, int keep, float* weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = bytes[i] < keep ? weights[i] : 0.0f;
}

}  // namespace

void dropout_mask(const Dropout& part, float* weights, int threads) {
  parallel_for(part.heads * part.rows, part.columns * kCost, threads, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      const uint32_t head = static_cast<uint32_t>(line / part.rows);
      const uint32_t row = static_cast<uint32_t>(part.first_row + line % part.rows);
      for (int64_t column = 0; column < part.columns; column += kColumns) {
        const uint32_t counter = static_cast<uint32_t>((part.first_column + column) / kColumns * kCounters);
        const auto bytes = bytes_of(philox(counter, row, head, part.offset, part.seed));
        const int64_t count = std::min(kColumns, part.columns - column);
        float* own = weights + line * part.columns + column;
        if (count == kColumns) {  // a length that the compiler knows
          drop(bytes.data(), kColumns, part.keep, own);
        } else {
          drop(bytes.data(), count, part.keep, own);
        }
      }
    }
  });
}

}  // namespace dqcore::cpu
