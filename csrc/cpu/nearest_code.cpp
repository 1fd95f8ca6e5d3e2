// The nearest code of each vector by AMX, where rounding cannot have decided between two codes.
//
// Tiles add up the products high high, high low and low high of vectors and codes in float32, and nothing is kept but
// each vector's two smallest scores and the code of the smallest. Reference: dqcore.ops.nearest_code.
#ifdef DQCORE_AMX
#include <atomic>
#include <limits>
#include <memory>

#include "cpu/parallel.h"
#include "cpu/split.h"

namespace dqcore::cpu {
namespace {

constexpr int64_t kPair = 2 * kSide;    // vectors, and codes, whose scores are computed together
constexpr int64_t kStrip = 2 * kPair;   // vectors that a thread takes at a time
constexpr int64_t kSlab = 1 << 19;      // bytes of codes that stay in a core's cache
constexpr int64_t kProductBytes = 64;   // what parallel_for is told of a product: bytes moved in its time
constexpr int kBytes = sizeof(Tile::rows[0]);

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The two smallest scores of a vector in each column of the tiles, and which tile had the smallest.
struct alignas(64) Smallest {
  Smallest() {
    std::fill_n(best, kSide, std::numeric_limits<float>::infinity());
    std::fill_n(second, kSide, std::numeric_limits<float>::infinity());
  }
  float best[kSide], second[kSide];
  int32_t tile[kSide] = {};
};

// What a thread knows of the vectors that it has taken.
struct alignas(64) Strip {
  explicit Strip(const SplitCodes& codes)
      : tiles(kStrip / kSide * codes.tiles_each), high(codes.dim + kSide), low(codes.dim + kSide) {}
  std::vector<Tile> tiles;
  std::vector<uint16_t> high, low;
  alignas(64) float products[4][kSide * kSide];
  Smallest smallest[kStrip];
  Lengths lengths[kStrip];
};

// Products of the tiles 4, 5 of 32 vectors and 6, 7 of 32 codes.
DQ_TILES inline void multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// Adds up the products of stacked parts.
DQ_TILES inline void multiply_stacked(const Tile* a, const Tile* b, int64_t tiles) {
  for (int64_t tile = 0; tile < tiles; ++tile, ++a, ++b) {
    _tile_loadd(4, a, kBytes);
    _tile_loadd(5, a + tiles, kBytes);
    _tile_loadd(6, b, kBytes);
    _tile_loadd(7, b + tiles, kBytes);
    multiply();
  }
}

// Adds up the products of parts whose tiles take turns.
DQ_TILES inline void multiply_split(const Tile* a, const Tile* b, int64_t tiles) {
  for (int64_t high = 0, low = 1; high < tiles; high += 2, low += 2) {
    _tile_loadd(4, a + low, kBytes);
    _tile_loadd(5, a + tiles + low, kBytes);
    _tile_loadd(6, b + high, kBytes);
    _tile_loadd(7, b + tiles + high, kBytes);
    multiply();
    _tile_loadd(4, a + high, kBytes);
    _tile_loadd(5, a + tiles + high, kBytes);
    multiply();
    _tile_loadd(6, b + low, kBytes);
    _tile_loadd(7, b + tiles + low, kBytes);
    multiply();
  }
}

// Takes the products of 16 vectors and 32 codes, which lie in two tiles, into what is known of the vectors.
DQ_TILES inline void keep_smallest(const float* products, const float* square, int32_t tile, Smallest* smallest) {
  const __m512 squares[2] = {_mm512_loadu_ps(square), _mm512_loadu_ps(square + kSide)};
  const __m512i tiles[2] = {_mm512_set1_epi32(tile), _mm512_set1_epi32(tile + 1)};
  for (int64_t row = 0; row < kSide; ++row, ++smallest) {
    __m512 best = _mm512_load_ps(smallest->best), second = _mm512_load_ps(smallest->second);
    __m512i where = _mm512_load_si512(smallest->tile);
    for (int side = 0; side < 2; ++side) {
      const __m512 score = _mm512_add_ps(_mm512_load_ps(products + (side * kSide + row) * kSide), squares[side]);
      where = _mm512_mask_mov_epi32(where, _mm512_cmp_ps_mask(score, best, _CMP_LT_OQ), tiles[side]);
      second = _mm512_min_ps(second, _mm512_max_ps(best, score));
      best = _mm512_min_ps(best, score);
    }
    _mm512_store_ps(smallest->best, best);
    _mm512_store_ps(smallest->second, second);
    _mm512_store_si512(smallest->tile, where);
  }
}

// Compares 32 vectors with the codes from `start` to `end`.
DQ_TILES void scan(const SplitCodes& codes, Strip& strip, int64_t first, int64_t start, int64_t end) {
  const Tile* const a = strip.tiles.data() + first / kSide * codes.tiles_each;
  for (int64_t code = start; code < end; code += kPair) {
    const Tile* const b = codes.tiles.data() + code / kSide * codes.tiles_each;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    codes.stacked ? multiply_stacked(a, b, codes.tiles_each) : multiply_split(a, b, codes.tiles_each);
    _tile_stored(0, strip.products[0], kBytes);
    _tile_stored(1, strip.products[1], kBytes);
    _tile_stored(2, strip.products[2], kBytes);
    _tile_stored(3, strip.products[3], kBytes);
    const int32_t tile = static_cast<int32_t>(code / kSide);
    keep_smallest(strip.products[0], codes.square.data() + code, tile, strip.smallest + first);
    keep_smallest(strip.products[2], codes.square.data() + code, tile, strip.smallest + first + kSide);
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
  const double second = std::min(_mm512_reduce_min_ps(_mm512_load_ps(smallest.second)),
                                 _mm512_mask_reduce_min_ps(others, best));
  return second - first > codes.margin(lengths) ? smallest.tile[lane] * kSide + lane : -1;
}

// Splits up to 64 vectors into the tiles of a strip.
void take(const SplitCodes& codes, const float* vectors, int64_t count, Strip& strip) {
  for (int64_t index = 0; index < count; ++index) {
    const float* const vector = vectors + index * codes.dim;
    strip.smallest[index] = Smallest();
    strip.lengths[index] =
        split(vector, codes.scale, codes.mean.data(), 1, codes.dim, strip.high.data(), strip.low.data());
    Tile* const tiles = strip.tiles.data() + index / kSide * codes.tiles_each;
    lay_out(codes, strip.high.data(), strip.low.data(), false,
            [&](int64_t tile, int64_t column, const uint16_t* values, int64_t size) {
              uint16_t* const row = tiles[tile].rows[index % kSide] + column;
              size == kWidth ? std::copy_n(values, kWidth, row) : std::copy_n(values, size, row);  // one fixed size
            });
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);  // tile loads read what was stored here
}

// Takes strips of vectors until none is left.
DQ_TILES void work(const SplitCodes& codes, const float* vectors, int64_t count, int64_t* out,
                   std::atomic<int64_t>& next) {
  const auto strip = std::make_unique<Strip>(codes);
  const int64_t num = codes.square.size(), bytes = 2 * codes.tiles_each * sizeof(Tile);
  const int64_t slab = std::max<int64_t>(1, kSlab / bytes) * kPair;
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t start; (start = next.fetch_add(kStrip)) < count;) {
    const int64_t here = std::min(kStrip, count - start);
    take(codes, vectors + start * codes.dim, here, *strip);
    for (int64_t code = 0; code < num; code += slab) {
      for (int64_t first = 0; first < here; first += kPair)
        scan(codes, *strip, first, code, std::min(num, code + slab));
    }
    for (int64_t index = 0; index < here; ++index)
      out[start + index] = settled(codes, strip->smallest[index], strip->lengths[index]);
  }
  _tile_release();
}

}  // namespace

void SplitCodes::nearest(const float* vectors, int64_t count, int64_t* out, int threads) const {
  std::atomic<int64_t> next{0};
  const int64_t tiles = kStrip / kSide * square.size() / kSide;
  parallel_for((count + kStrip - 1) / kStrip, tiles * (products_each + 4) * kProductBytes, threads,
               [&](int64_t, int64_t) { work(*this, vectors, count, out, next); });
}

}  // namespace dqcore::cpu

#endif
