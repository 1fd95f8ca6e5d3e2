// A codebook in two bfloat16 parts, high and low, as the tiles of AMX multiply it. docs/exactness.md has the
// proof.
#pragma once

#include <cstdint>
#include <vector>

namespace dqcore::cpu {

constexpr int64_t kSide = 16;   // vectors or codes of a tile
constexpr int64_t kWidth = 32;  // numbers of a tile's row

struct alignas(64) Tile {
  uint16_t rows[kSide][kWidth] = {};
};

// Squared lengths of a vector x', of its low part, and of what both parts leave over.
struct Lengths {
  float all, low, rest;
};

class SplitCodes {
 public:
  // Takes float32 codes (num, dim), and reads them later. x' is a vector times `scale` less `mean`; c' is
  // that of a code.
  SplitCodes(const float* codebook, int64_t num, int64_t dim);
  // The nearest codes of float32 vectors (count, dim), -1 for those that rounding might decide. Not if
  // `usable` is false.
  void nearest(const float* vectors, int64_t count, int64_t* out, int threads) const;

  // How far apart a vector's two smallest scores must be; those of the high parts alone, if `high`.
  double margin(const Lengths& vector, bool high) const;

  const float* codebook;
  int64_t num, dim;
  bool usable;   // all codes are finite
  bool stacked;  // few channels: a vector's parts follow one another; else a tile of high, a tile of low, ...
  int64_t tiles_each;     // tiles that hold the parts of 16 vectors or codes
  int64_t products_each;  // products of tiles that give the scores of 16 vectors and 16 codes
  std::vector<float> mean;
  float scale;
  std::vector<Tile>
      tiles;  // of -2 c': those of 16 codes after the other; a row holds 16 pairs, one of each code
  std::vector<float> square;  // ||c'||^2, infinite for codes that fill up the last two tiles

 private:
  void centre();
  void split_all();
  void stack(const uint16_t* high, const uint16_t* low, int64_t count, int64_t pitch, Tile* row) const;
  void take_turns(const uint16_t* high, const uint16_t* low, int64_t count, int64_t pitch, Tile* row) const;

  double radius = 0, low = 0, rest = 0;  // the largest lengths of any c', and of the parts of -2 c'
};

// Whether this CPU can do it.
bool has_tiles();

}  // namespace dqcore::cpu
