// The nearest code of each vector by AMX, where rounding cannot have decided between two codes.
//
// First the high parts of vectors and codes alone are multiplied: a third of the work, which settles most
// vectors. For the rest tiles add up the products high high, high low and low high. The few that this leaves
// open are compared in float64. Reference: dqcore.ops.nearest_code.
#ifdef DQCORE_AMX
#include <atomic>
#include <cmath>
#include <memory>

#include "cpu/parallel.h"
#include "cpu/tiles.h"

namespace dqcore::cpu {
namespace {

constexpr int64_t kStrip = 2 * kPair;  // vectors that a thread takes at a time
constexpr int64_t kSlab = 1 << 19;     // bytes of codes that stay in a core's cache
constexpr int64_t kProductBytes = 64;  // what parallel_for is told of a product: bytes moved in its time
constexpr int64_t kHighParts =
    96;  // channels of which a product of the high parts alone takes much less time
constexpr int64_t kTrial =
    4 * kStrip;  // vectors after which a thread knows whether the high parts settle enough

// Vectors in parts, and what is known of them.
struct alignas(64) Strip {
  explicit Strip(const SplitCodes& codes) : tiles(kStrip / kSide * codes.tiles_each) {}
  std::vector<Tile> tiles;
  Smallest smallest[kStrip];
  Lengths lengths[kStrip];
  int64_t places[kStrip];  // which of all vectors they are
  int64_t count = 0;
};

// The vector's nearest code, or -1 where another one's score is within the margin. A NaN anywhere gives -1.
DQ_TILES int64_t settled(const Smallest& smallest, double margin) {
  const __m512 best = _mm512_load_ps(smallest.best);
  const float first = _mm512_reduce_min_ps(best);
  const __mmask16 equal = _mm512_cmp_ps_mask(best, _mm512_set1_ps(first), _CMP_EQ_OQ);
  if (equal == 0) return -1;
  const int lane = __builtin_ctz(equal);
  const __mmask16 others = static_cast<__mmask16>(~(1u << lane));
  const double second = std::min(_mm512_reduce_min_ps(_mm512_load_ps(smallest.second)),
                                 _mm512_mask_reduce_min_ps(others, best));
  return second - first > margin ? smallest.tile[lane] * kSide + lane : -1;
}

// The code of the smallest float64 distance, or -1 where the rounding of distances might decide.
DQ_TILES int64_t nearest_in_float64(const SplitCodes& codes, const float* vector) {
  constexpr int64_t kTogether = 4;
  double best = std::numeric_limits<double>::infinity(), second = best;
  int64_t nearest = -1;
  for (int64_t start = 0; start < codes.num; start += kTogether) {
    const float* values[kTogether];
    __m512d sums[kTogether];
    for (int64_t index = 0; index < kTogether; ++index) {
      values[index] = codes.codebook + std::min(start + index, codes.num - 1) * codes.dim;
      sums[index] = _mm512_setzero_pd();
    }
    for (int64_t first = 0; first < codes.dim; first += 8) {
      const __mmask8 mask = static_cast<__mmask8>((1u << std::min<int64_t>(8, codes.dim - first)) - 1);
      const __m512d own = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, vector + first));
      for (int64_t index = 0; index < kTogether; ++index) {
        const __m512d apart =
            _mm512_sub_pd(own, _mm512_cvtps_pd(_mm256_maskz_loadu_ps(mask, values[index] + first)));
        sums[index] = _mm512_fmadd_pd(apart, apart, sums[index]);
      }
    }
    for (int64_t index = 0; index < std::min(kTogether, codes.num - start); ++index) {
      const double distance = _mm512_reduce_add_pd(sums[index]);
      second = std::min(second, std::max(best, distance));
      if (distance < best) best = distance, nearest = start + index;
    }
  }
  return second - best > 4.1 * (codes.dim + 8) * 0x1p-53 * second ? nearest : -1;
}

// One thread's work: takes strips of vectors until none is left.
class Worker {
 public:
  Worker(const SplitCodes& codes, const float* vectors, int64_t* out)
      : codes_(codes),
        vectors_(vectors),
        out_(out),
        slab_(std::max<int64_t>(1, kSlab / static_cast<int64_t>(2 * codes.tiles_each * sizeof(Tile))) *
              kPair),
        high_(codes.dim + kSide),
        low_(codes.dim + kSide),
        strip_(codes),
        open_(codes) {}

  DQ_TILES void work(int64_t count, std::atomic<int64_t>& next) {
    const TileConfig config;
    _tile_loadconfig(&config);
    for (int64_t start; (start = next.fetch_add(kStrip)) < count;) {
      take(start, std::min(kStrip, count - start));
      const bool enough = tried_ < kTrial || 4 * settled_ > tried_;
      const bool pays = codes_.dim >= kHighParts && enough;
      pays ? try_high_parts() : finish(strip_);
    }
    finish(open_);
    _tile_release();
  }

 private:
  // Splits vectors into the tiles of the strip.
  void take(int64_t start, int64_t count) {
    strip_.count = count;
    for (int64_t index = 0; index < count; ++index) {
      strip_.smallest[index] = Smallest();
      strip_.places[index] = start + index;
      strip_.lengths[index] = split(vectors_ + (start + index) * codes_.dim, codes_.scale, codes_.mean.data(),
                                    1, codes_.dim, high_.data(), low_.data());
      Tile* const tiles = strip_.tiles.data() + index / kSide * codes_.tiles_each;
      lay_out(codes_, high_.data(), low_.data(), false,
              [&](int64_t tile, int64_t column, const uint16_t* values, int64_t size) {
                uint16_t* const row = tiles[tile].rows[index % kSide] + column;
                size == kWidth ? std::copy_n(values, kWidth, row)
                               : std::copy_n(values, size, row);  // one fixed size
              });
    }
  }

  // Settles by the high parts what they can, and keeps the rest until it fills a strip.
  DQ_TILES void try_high_parts() {
    compare<Parts::kHigh>(strip_);
    for (int64_t index = 0; index < strip_.count; ++index) {
      const int64_t code = settled(strip_.smallest[index], codes_.margin(strip_.lengths[index], true));
      out_[strip_.places[index]] = code;
      settled_ += code >= 0;
      if (code < 0) keep_open(index);
      if (open_.count == kStrip) finish(open_);
    }
    tried_ += strip_.count;
  }

  void keep_open(int64_t index) {
    const int64_t place = open_.count++;
    open_.smallest[place] = Smallest();
    open_.places[place] = strip_.places[index];
    open_.lengths[place] = strip_.lengths[index];
    const Tile* const from = strip_.tiles.data() + index / kSide * codes_.tiles_each;
    Tile* const to = open_.tiles.data() + place / kSide * codes_.tiles_each;
    for (int64_t tile = 0; tile < codes_.tiles_each; ++tile)
      std::copy_n(from[tile].rows[index % kSide], kWidth, to[tile].rows[place % kSide]);
  }

  // Settles a strip by all parts, and a few of its vectors in float64; it is empty then.
  DQ_TILES void finish(Strip& strip) {
    codes_.stacked ? compare<Parts::kStacked>(strip) : compare<Parts::kSplit>(strip);
    for (int64_t index = 0; index < strip.count; ++index) {
      const int64_t place = strip.places[index];
      out_[place] = settled(strip.smallest[index], codes_.margin(strip.lengths[index], false));
      if (out_[place] < 0 && few_ > 0 && std::isfinite(strip.lengths[index].all)) {
        out_[place] = nearest_in_float64(codes_, vectors_ + place * codes_.dim);
        --few_;
      }
    }
    few_ += strip.count / kSide;
    strip.count = 0;
  }

  template <Parts kParts>
  DQ_TILES void compare(Strip& strip) {
    std::atomic_signal_fence(std::memory_order_seq_cst);  // tile loads read what was stored
    const int64_t num = codes_.square.size();
    for (int64_t code = 0; code < num; code += slab_) {
      for (int64_t first = 0; first < strip.count; first += kPair)
        scan<kParts>(codes_, strip.tiles.data() + first / kSide * codes_.tiles_each, code,
                     std::min(num, code + slab_), products_, strip.smallest + first);
    }
  }

  const SplitCodes& codes_;
  const float* vectors_;
  int64_t* out_;
  int64_t slab_;  // codes that are compared with a strip before the next ones
  std::vector<uint16_t> high_, low_;
  Strip strip_, open_;
  Products products_;
  int64_t tried_ = 0, settled_ = 0;  // vectors whose high parts were tried, and were enough
  int64_t few_ = kStrip;             // vectors that may still be compared in float64, which takes long
};

}  // namespace

void SplitCodes::nearest(const float* vectors, int64_t count, int64_t* out, int threads) const {
  std::atomic<int64_t> next{0};
  const int64_t tiles = kStrip / kSide * square.size() / kSide;
  parallel_for((count + kStrip - 1) / kStrip, tiles * (products_each + 4) * kProductBytes, threads,
               [&](int64_t, int64_t) { std::make_unique<Worker>(*this, vectors, out)->work(count, next); });
}

}  // namespace dqcore::cpu

#endif
