// From planes of cells to vectors of channels and back, sixteen bytes at a time.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace dqcore::cpu {

// Rows and columns of the square that is transposed at a time.
template <typename T>
constexpr int64_t kSquare = 16 / sizeof(T);

// Transposes a square: its rows are read at row(i), its columns are written to column(j). T has two or four
// bytes.
template <typename T, typename Row, typename Column>
void transpose_square(const Row& row, const Column& column) {
  constexpr int64_t n = kSquare<T>;
#ifdef __SSE2__
  __m128i a[n], b[n];
  for (int64_t i = 0; i < n; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row(i)));
  // Each round interleaves rows i and i + n/2; after log2(n) rounds every element is in its place.
  for (int64_t round = 1; round < n; round *= 2) {
    for (int64_t i = 0; i < n / 2; ++i) {
      const bool narrow = sizeof(T) == 2;
      b[2 * i] = narrow ? _mm_unpacklo_epi16(a[i], a[i + n / 2]) : _mm_unpacklo_epi32(a[i], a[i + n / 2]);
      b[2 * i + 1] = narrow ? _mm_unpackhi_epi16(a[i], a[i + n / 2]) : _mm_unpackhi_epi32(a[i], a[i + n / 2]);
    }
    std::memcpy(a, b, sizeof a);
  }
  for (int64_t j = 0; j < n; ++j) _mm_storeu_si128(reinterpret_cast<__m128i*>(column(j)), a[j]);
#else
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) column(j)[i] = row(i)[j];
  }
#endif
}

// Covers channels x cells by squares, and by single elements at the edges. The inner loop runs along the
// planes: they lie far apart, and a cache holds few of them at once.
template <typename T, typename Square, typename Element>
void for_squares(int64_t channels, int64_t cells, const Square& square, const Element& element) {
  constexpr int64_t n = kSquare<T>;
  const int64_t whole_channels = channels - channels % n, whole_cells = cells - cells % n;
  for (int64_t channel = 0; channel < whole_channels; channel += n) {
    for (int64_t cell = 0; cell < whole_cells; cell += n) square(channel, cell);
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t cell = channel < whole_channels ? whole_cells : 0; cell < cells; ++cell)
      element(channel, cell);
  }
}

// plane(channel) and vector(cell) point to the first elements of planes and vectors.
template <typename T, typename Plane, typename Vector>
void planes_to_vectors(int64_t channels, int64_t cells, const Plane& plane, const Vector& vector) {
  for_squares<T>(
      channels, cells,
      [&](int64_t channel, int64_t cell) {
        transpose_square<T>([&](int64_t i) { return plane(channel + i) + cell; },
                            [&](int64_t i) { return vector(cell + i) + channel; });
      },
      [&](int64_t channel, int64_t cell) { vector(cell)[channel] = plane(channel)[cell]; });
}

template <typename T, typename Plane, typename Vector>
void vectors_to_planes(int64_t channels, int64_t cells, const Vector& vector, const Plane& plane) {
  for_squares<T>(
      channels, cells,
      [&](int64_t channel, int64_t cell) {
        transpose_square<T>([&](int64_t i) { return vector(cell + i) + channel; },
                            [&](int64_t i) { return plane(channel + i) + cell; });
      },
      [&](int64_t channel, int64_t cell) { plane(channel)[cell] = vector(cell)[channel]; });
}

}  // namespace dqcore::cpu
