// The nearest code of each vector by AMX, where rounding cannot have decided between two codes.
//
// Vectors and codes are sums of two bfloat16 numbers, high and low. Tiles of the CPU add up the products high high,
// high low and low high in float32, and nothing but each vector's two smallest scores and the code of the smallest is
// kept. The proof of the margin between them is in docs/exactness.md. Reference: dqcore.ops.nearest_code.
#include "ops.h"

#ifdef DQCORE_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "cpu/parallel.h"

// On every function that uses these instructions: the rest of the extension runs on any CPU of its kind.
#define DQ_TILES __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

namespace dqcore::cpu {
namespace {

constexpr int64_t kSide = 16;               // vectors or codes of a tile
constexpr int64_t kWidth = 32;              // bfloat16 numbers of a tile's row
constexpr int64_t kTile = kSide * kWidth;   // and of a tile
constexpr int64_t kStrip = 64;              // vectors that a thread takes at a time
constexpr int64_t kSlab = 1 << 18;          // bfloat16 numbers of the codes that stay in a core's cache: 512 KB
constexpr int64_t kBytesPerProduct = 64;    // what parallel_for is told of a tile product: bytes moved in its time

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// What is known of a vector: the two smallest scores in each of 16 lanes, and the code tile of the smallest.
struct alignas(64) Smallest {
  Smallest() {
    std::fill_n(best, kSide, std::numeric_limits<float>::infinity());
    std::fill_n(second, kSide, std::numeric_limits<float>::infinity());
  }
  float best[kSide], second[kSide];
  int32_t tile[kSide] = {};
};

// Lengths that say by how much a vector's scores may be off.
struct Lengths {
  float whole, low, rest;
};

// The memory of one thread.
struct alignas(64) Strip {
  uint16_t* tiles;  // of the vectors, pair after pair of 16; each pair's tiles as those of a pair of codes
  uint16_t *high, *low;
  alignas(64) float scores[4][kSide * kSide];
  Smallest smallest[kStrip];
  Lengths lengths[kStrip];
};

// bfloat16 numbers as float32.
DQ_TILES inline __m512 widen(__m256bh x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16));
}

// Splits a vector, centred and scaled, into high and low. What both leave over is measured, not assumed.
DQ_TILES Lengths split(const SplitCodes& codes, const float* vector, Strip& strip) {
  __m512 whole = _mm512_setzero_ps(), low = whole, rest = whole;
  const __m512 scale = _mm512_set1_ps(codes.scale);
  for (int64_t first = 0; first < codes.dim; first += 16) {
    const __mmask16 mask = (1u << std::min<int64_t>(16, codes.dim - first)) - 1;
    const __m512 mean = _mm512_maskz_loadu_ps(mask, codes.mean + first);
    const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(mask, vector + first), scale, mean);
    const __m256bh upper = _mm512_cvtneps_pbh(x);
    const __m512 left = _mm512_sub_ps(x, widen(upper));
    const __m256bh lower = _mm512_cvtneps_pbh(left);
    const __m512 small = widen(lower), over = _mm512_sub_ps(left, small);
    _mm256_storeu_si256((__m256i*)(strip.high + first), (__m256i)upper);
    _mm256_storeu_si256((__m256i*)(strip.low + first), (__m256i)lower);
    whole = _mm512_fmadd_ps(x, x, whole);
    low = _mm512_fmadd_ps(small, small, low);
    rest = _mm512_fmadd_ps(over, over, rest);
  }
  return {_mm512_reduce_add_ps(whole), _mm512_reduce_add_ps(low), _mm512_reduce_add_ps(rest)};
}

// Puts a split vector into row `row` of the tiles.
void place(const SplitCodes& codes, const Strip& strip, int64_t row, uint16_t* tiles) {
  const auto put = [&](int64_t column, const uint16_t* values, int64_t count) {
    while (count > 0) {  // as far as the row of one tile goes
      const int64_t here = std::min(count, kWidth - column % kWidth);
      std::memcpy(tiles + column / kWidth * kTile + row * kWidth + column % kWidth, values, here * 2);
      column += here, values += here, count -= here;
    }
  };
  if (codes.stacked) {
    put(0, strip.high, codes.dim);
    put(codes.dim, strip.low, codes.dim);
    put(2 * codes.dim, strip.high, codes.dim);
    return;
  }
  for (int64_t first = 0; first < codes.dim; first += kWidth) {
    const int64_t count = std::min(kWidth, codes.dim - first);
    put(2 * first, strip.high + first, count);
    put(2 * first + kWidth, strip.low + first, count);
  }
}

// Adds up the scores, less the squares, of 32 vectors and 32 codes whose parts lie side by side in each tile.
DQ_TILES inline void multiply_stacked(const uint16_t* a, const uint16_t* b, int64_t tiles) {
  for (int64_t tile = 0; tile < tiles; ++tile, a += kTile, b += kTile) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + tiles * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + tiles * kTile, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

#define DQ_MULTIPLY_PAIRS      \
  _tile_dpbf16ps(0, 4, 6);     \
  _tile_dpbf16ps(1, 4, 7);     \
  _tile_dpbf16ps(2, 5, 6);     \
  _tile_dpbf16ps(3, 5, 7)

// The same where a tile of high parts and one of low parts take turns.
DQ_TILES inline void multiply_split(const uint16_t* a, const uint16_t* b, int64_t tiles) {
  const uint16_t *next_a = a + tiles * kTile, *next_b = b + tiles * kTile;
  for (int64_t tile = 0; tile < tiles; tile += 2) {
    const int64_t high = tile * kTile, low = high + kTile;
    _tile_loadd(4, a + low, 64);
    _tile_loadd(5, next_a + low, 64);
    _tile_loadd(6, b + high, 64);
    _tile_loadd(7, next_b + high, 64);
    DQ_MULTIPLY_PAIRS;
    _tile_loadd(4, a + high, 64);
    _tile_loadd(5, next_a + high, 64);
    DQ_MULTIPLY_PAIRS;
    _tile_loadd(6, b + low, 64);
    _tile_loadd(7, next_b + low, 64);
    DQ_MULTIPLY_PAIRS;
  }
}

// Takes two tiles of products, 16 vectors by 32 codes, into what is known of the vectors.
DQ_TILES inline void keep_smallest(const float* left, const float* right, const float* square, int32_t tile,
                                   Smallest* smallest) {
  const __m512 squares[2] = {_mm512_loadu_ps(square), _mm512_loadu_ps(square + kSide)};
  const __m512i tiles[2] = {_mm512_set1_epi32(tile), _mm512_set1_epi32(tile + 1)};
  for (int64_t row = 0; row < kSide; ++row, ++smallest) {
    __m512 best = _mm512_load_ps(smallest->best), second = _mm512_load_ps(smallest->second);
    __m512i where = _mm512_load_si512(smallest->tile);
    for (int side = 0; side < 2; ++side) {
      const __m512 products = _mm512_load_ps((side ? right : left) + row * kSide);
      const __m512 score = _mm512_add_ps(products, squares[side]);
      where = _mm512_mask_mov_epi32(where, _mm512_cmp_ps_mask(score, best, _CMP_LT_OQ), tiles[side]);
      second = _mm512_min_ps(second, _mm512_max_ps(best, score));
      best = _mm512_min_ps(best, score);
    }
    _mm512_store_ps(smallest->best, best);
    _mm512_store_ps(smallest->second, second);
    _mm512_store_si512(smallest->tile, where);
  }
}

// Compares the vectors of a strip, `pairs` of 16 and 16, with all codes.
DQ_TILES void scan(const SplitCodes& codes, Strip& strip, int64_t pairs) {
  const int64_t tiles = codes.tiles_each, pair = 2 * tiles * kTile;
  const int64_t slab = std::max<int64_t>(1, kSlab / pair) * 2 * kSide;
  for (int64_t start = 0; start < codes.num; start += slab) {
    const int64_t end = std::min(codes.num, start + slab);
    for (int64_t vectors = 0; vectors < pairs; ++vectors) {
      Smallest* smallest = strip.smallest + vectors * 2 * kSide;
      for (int64_t code = start; code < end; code += 2 * kSide) {
        const uint16_t *a = strip.tiles + vectors * pair, *b = codes.tiles + code / (2 * kSide) * pair;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        codes.stacked ? multiply_stacked(a, b, tiles) : multiply_split(a, b, tiles);
        _tile_stored(0, strip.scores[0], 64);
        _tile_stored(1, strip.scores[1], 64);
        _tile_stored(2, strip.scores[2], 64);
        _tile_stored(3, strip.scores[3], 64);
        const int32_t tile = static_cast<int32_t>(code / kSide);
        keep_smallest(strip.scores[0], strip.scores[1], codes.square + code, tile, smallest);
        keep_smallest(strip.scores[2], strip.scores[3], codes.square + code, tile, smallest + kSide);
      }
    }
  }
}

// The vector's nearest code, or -1 where another one's score is within the margin. A NaN anywhere gives -1.
DQ_TILES int64_t settled(const SplitCodes& codes, const Smallest& smallest, const Lengths& lengths) {
  const __m512 best = _mm512_load_ps(smallest.best);
  const float first = _mm512_reduce_min_ps(best);
  const __mmask16 equal = _mm512_cmp_ps_mask(best, _mm512_set1_ps(first), _CMP_EQ_OQ);
  if (equal == 0) return -1;
  const int lane = __builtin_ctz(equal);
  const __mmask16 others = static_cast<__mmask16>(~(1u << lane));
  const float second = std::min(_mm512_reduce_min_ps(_mm512_load_ps(smallest.second)),
                                _mm512_mask_reduce_min_ps(others, best));
  const double gap = static_cast<double>(second) - first;
  return gap > codes.margin(lengths.whole, lengths.low, lengths.rest) ? smallest.tile[lane] * kSide + lane : -1;
}

// Takes strips of 64 vectors until none is left.
DQ_TILES void work(const SplitCodes& codes, const float* vectors, int64_t count, int64_t* out,
                   std::atomic<int64_t>& next) {
  const int64_t tiles = codes.tiles_each, padded = (codes.dim + 15) / 16 * 16;
  const int64_t size = kStrip / kSide * tiles * kTile;
  std::unique_ptr<uint16_t[]> memory(new uint16_t[size + 2 * padded + 32]());
  const auto strip = std::make_unique<Strip>();
  strip->tiles = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) / 2;
  strip->high = strip->tiles + size;
  strip->low = strip->high + padded;
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t start; (start = next.fetch_add(kStrip)) < count;) {
    const int64_t here = std::min(kStrip, count - start);
    for (int64_t index = 0; index < here; ++index) {
      strip->lengths[index] = split(codes, vectors + (start + index) * codes.dim, *strip);
      place(codes, *strip, index % kSide, strip->tiles + index / kSide * tiles * kTile);
    }
    std::fill_n(strip->smallest, kStrip, Smallest());
    std::atomic_signal_fence(std::memory_order_seq_cst);  // tile loads read what was stored above
    scan(codes, *strip, (here + 2 * kSide - 1) / (2 * kSide));
    for (int64_t index = 0; index < here; ++index)
      out[start + index] = settled(codes, strip->smallest[index], strip->lengths[index]);
  }
  _tile_release();
}

bool ask_for_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  if (!__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw")) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // AVX512-BF16
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

double SplitCodes::margin(double whole, double low, double rest) const {
  const auto length = [this](double squares) { return 1.0001 * std::sqrt(squares) + smallest; };
  const double norm = length(whole);
  const double sum = norm + radius;
  return by_norm * norm + by_low * length(low) + by_rest * length(rest) + always + by_square * sum * sum;
}

bool has_tiles() {
  static const bool has = ask_for_tiles();
  return has;
}

void nearest_split_code(const SplitCodes& codes, const float* vectors, int64_t count, int64_t* out, int threads) {
  std::atomic<int64_t> next{0};
  const int64_t strips = (count + kStrip - 1) / kStrip;
  const int64_t products = (3 * codes.tiles_each / 2 + 4) * (kStrip / kSide) * (codes.num / kSide);
  parallel_for(strips, products * kBytesPerProduct, threads,
               [&](int64_t, int64_t) { work(codes, vectors, count, out, next); });
}

}  // namespace dqcore::cpu

#else  // DQCORE_AMX

namespace dqcore::cpu {

bool has_tiles() { return false; }

void nearest_split_code(const SplitCodes&, const float*, int64_t, int64_t*, int) {}

}  // namespace dqcore::cpu

#endif
