// The codebook's side: parts in tiles, made once for many vectors, and the margin that their rounding asks for.
#include "cpu/split_codes.h"

#include <cmath>
#include <limits>

#ifdef DQCORE_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/split.h"

namespace dqcore::cpu {
namespace {

constexpr int64_t kStacked = 16;  // channels of which stacked parts take fewer products

bool ask_for_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw")) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // AVX512-BF16
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Numbers whose square underflows may be missing from a length.
double missing(int64_t dim) { return std::sqrt(static_cast<double>(dim)) * 0x1p-62; }

double length(double squares, int64_t dim) { return 1.0001 * std::sqrt(squares) + missing(dim); }

}  // namespace

bool has_tiles() {
  static const bool has = ask_for_tiles();
  return has;
}

SplitCodes::SplitCodes(const float* codebook, int64_t num, int64_t dim, const float* mean, float scale)
    : dim(dim),
      stacked(dim <= kStacked),
      tiles_each(stacked ? (3 * dim + kWidth - 1) / kWidth : 2 * ((dim + kWidth - 1) / kWidth)),
      products_each(stacked ? tiles_each : 3 * tiles_each / 2),
      scale(scale),
      mean(mean, mean + dim) {
  const int64_t padded = (num + 2 * kSide - 1) / (2 * kSide) * 2 * kSide;
  tiles.resize(padded / kSide * tiles_each);
  square.assign(padded, std::numeric_limits<float>::infinity());
  std::vector<uint16_t> parts(2 * (dim + kSide));
  uint16_t *const first = parts.data(), *const second = first + dim + kSide;
  Lengths largest{};
  for (int64_t code = 0; code < num; ++code) {
    const Lengths own = split(codebook + code * dim, -2 * scale, mean, -2, dim, first, second);
    largest = {std::max(largest.all, own.all), std::max(largest.low, own.low), std::max(largest.rest, own.rest)};
    square[code] = own.all / 4;
    Tile* const row = tiles.data() + code / kSide * tiles_each;
    lay_out(*this, first, second, true, [&](int64_t tile, int64_t column, const uint16_t* values, int64_t count) {
      for (int64_t index = 0; index < count; ++index) {
        const int64_t channel = column + index;
        row[tile].rows[channel / 2][code % kSide * 2 + channel % 2] = values[index];
      }
    });
  }
  radius = length(largest.all, dim) / 2;
  low = length(largest.low, dim);
  rest = length(largest.rest, dim);
}

double SplitCodes::margin(const Lengths& vector) const {
  constexpr double kUnit = 0x1p-24;
  const double norm = length(vector.all, dim), sum = norm + radius;
  const double tiles = 1.04 * (products_each + 33) * kUnit * 2 * norm * radius;
  const double others = 8 * kUnit * 2 * norm * radius + (16 + dim / 16) * kUnit * radius * radius;
  const double parts = length(vector.low, dim) * low + length(vector.rest, dim) * (2 * radius + rest) + norm * rest;
  const double underflow = 0x1p-118 * (dim + kWidth) * (1 + sum);
  return 2.02 * (tiles + others + parts + underflow + 0x1p-47 * sum * sum);
}

}  // namespace dqcore::cpu

#else

namespace dqcore::cpu {

bool has_tiles() { return false; }

}  // namespace dqcore::cpu

#endif
