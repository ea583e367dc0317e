// SPDX-License-Identifier: Apache-2.0
//
// The words behind `--machine synthetic,...`.
//
//   ram=SIZE          memory of the guest, a multiple of page-size (default 64M)
//   page-size=4K|2M   what backs it: 2M means hugetlb pages, which must exist (default 4K)
//   dirty-rate=SIZE   bytes of pages written per second, whole pages, all threads together (default 0)
//   working-set=SIZE  how much of the memory is written over and over (default min(ram, 64M))
//   touched=SIZE      how much is filled at the start; the rest are holes (default min(ram, working-set))
//   threads=N         how many write, 1..64 (default 1)
//   seed=N            what the pattern and its order are made from (default 1)
//   log=PATH          append "instance tick time" every 10 ms while running: proves that one copy runs
//   prealloc=on|off   have all memory from the start, so that a destination need not get it page by page (default off)
//   dirty-log=auto|async|sync   how writes are tracked (default auto)
//   blocked=REASON    a reason that forbids its migration, as a device may have one (default none)
//
// Sizes take K, M, G or T (powers of 1024). Memory is used from the start of each 2 MiB piece, the pieces spread
// evenly over the whole block.
#pragma once

#include "base/result.hpp"
#include "ram/dirty_log_factory.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace migrationd {

inline constexpr std::uint32_t synthetic_threads_max = 64;

struct SyntheticOptions {
  std::uint64_t ram = std::uint64_t{64} << 20;  // bytes
  std::size_t page_size = ram::page_size;       // of the backing memory
  std::uint64_t dirty_rate = 0;                 // bytes per second
  std::uint64_t working_set = 0;                // bytes, a multiple of 4096
  std::uint64_t touched = 0;                    // bytes, a multiple of 4096
  std::uint32_t threads = 1;
  std::uint64_t seed = 1;
  std::string log;  // empty: none
  bool prealloc = false;
  ram::DirtyLogKind dirty_log = ram::DirtyLogKind::automatic;
  std::string blocked;  // empty: it is not
};

// `text` is the whole machine word: "synthetic" or "synthetic,ram=1G,...". Errors (ErrorKind::plan) name the word.
Result<SyntheticOptions> parse_synthetic_options(std::string_view text);

}  // namespace migrationd
