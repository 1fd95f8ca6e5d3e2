// A parallel loop over threads of its own: torch's pool cannot be used without torch's headers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace dqcore::cpu {

// Another thread is started only for this much work. A start was measured to take 80 us on a busy machine, or
// while torch's workers spin; in that time one thread moves about 1 MB.
constexpr int64_t kBytesPerThread = 1 << 23;

// Calls body(begin, end) on disjoint ranges that cover [0, items).
template <typename Body>
void parallel_for(int64_t items, int64_t bytes_per_item, int threads, const Body& body) {
  const int64_t worthwhile = items * bytes_per_item / kBytesPerThread;
  const int64_t parts = std::max<int64_t>(1, std::min({worthwhile, items, static_cast<int64_t>(threads)}));
  std::vector<std::thread> workers;
  workers.reserve(parts - 1);
  int64_t begin = 0;
  try {
    for (int64_t part = 1; part < parts; ++part) {
      const int64_t end = items * part / parts;
      workers.emplace_back([&body, begin, end] { body(begin, end); });
      begin = end;
    }
  } catch (const std::system_error&) {
    // No more threads can be started: this one does the rest.
  }
  body(begin, items);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace dqcore::cpu
