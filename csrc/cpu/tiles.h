// Scores of 32 vectors and every code by AMX, of which each vector's two smallest are kept.
#pragma once

#include <limits>

#include "cpu/split.h"

namespace dqcore::cpu {

constexpr int64_t kPair = 2 * kSide;  // vectors, and codes, whose scores are computed together
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

// Products of 32 vectors and 32 codes: of the first 16 vectors with either half of the codes, then of the
// others.
struct alignas(64) Products {
  float values[4][kSide * kSide];
};

// Which products make a score: of stacked parts, of the parts that lie in turns, or of the high parts alone.
enum class Parts { kStacked, kSplit, kHigh };

DQ_TILES inline void multiply() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

DQ_TILES inline void load_vectors(const Tile* a, int64_t tiles) {
  _tile_loadd(4, a, kBytes);
  _tile_loadd(5, a + tiles, kBytes);
}

DQ_TILES inline void load_codes(const Tile* b, int64_t tiles) {
  _tile_loadd(6, b, kBytes);
  _tile_loadd(7, b + tiles, kBytes);
}

// Adds the products of one step: of a tile of each row of tiles, of split parts of two.
template <Parts kParts>
DQ_TILES inline void multiply_step(const Tile* a, const Tile* b, int64_t tiles, int64_t step) {
  if (kParts == Parts::kStacked) {
    load_vectors(a + step, tiles);
    load_codes(b + step, tiles);
    return multiply();
  }
  const int64_t high = 2 * step, low = high + 1;
  if (kParts == Parts::kSplit) {
    load_vectors(a + low, tiles);
    load_codes(b + high, tiles);
    multiply();
    load_vectors(a + high, tiles);
    multiply();
    load_codes(b + low, tiles);
    return multiply();
  }
  load_vectors(a + high, tiles);
  load_codes(b + high, tiles);
  multiply();
}

// Takes the products of 16 vectors and 32 codes, of which `square` and `tile` are the first, into account.
DQ_TILES inline void keep_smallest(const float* products, const float* square, int32_t tile,
                                   Smallest* smallest) {
  const __m512 squares[2] = {_mm512_loadu_ps(square), _mm512_loadu_ps(square + kSide)};
  const __m512i tiles[2] = {_mm512_set1_epi32(tile), _mm512_set1_epi32(tile + 1)};
  for (int64_t row = 0; row < kSide; ++row, products += kSide, ++smallest) {
    __m512 best = _mm512_load_ps(smallest->best), second = _mm512_load_ps(smallest->second);
    __m512i where = _mm512_load_si512(smallest->tile);
    for (int side = 0; side < 2; ++side) {
      const __m512 score = _mm512_add_ps(_mm512_load_ps(products + side * kSide * kSide), squares[side]);
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
template <Parts kParts>
DQ_TILES void scan(const SplitCodes& codes, const Tile* a, int64_t start, int64_t end, Products& products,
                   Smallest* smallest) {
  const int64_t tiles = codes.tiles_each, steps = kParts == Parts::kStacked ? tiles : tiles / 2;
  for (int64_t code = start; code < end; code += kPair) {
    const Tile* const b = codes.tiles.data() + code / kSide * tiles;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps; ++step) multiply_step<kParts>(a, b, tiles, step);
    _tile_stored(0, products.values[0], kBytes);
    _tile_stored(1, products.values[1], kBytes);
    _tile_stored(2, products.values[2], kBytes);
    _tile_stored(3, products.values[3], kBytes);
    const float* const square = codes.square.data() + code;
    keep_smallest(products.values[0], square, static_cast<int32_t>(code / kSide), smallest);
    keep_smallest(products.values[2], square, static_cast<int32_t>(code / kSide), smallest + kSide);
  }
}

}  // namespace dqcore::cpu
