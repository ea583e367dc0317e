// SPDX-License-Identifier: Apache-2.0
//
// Checksums beside a file: FILE.sums tells later whether FILE still is what it was (docs/formats/checksums.md).
//
// Text, one line per MiB of the file that is not all zero, so holes cost nothing and a copy that filled them is still
// right:
//
//   migrationd-sums 1
//   hash xxh3-128
//   chunk 1048576
//   size <bytes of the file>
//   <number of the chunk> <32 hexadecimal digits>        ascending
//   end <how many such lines>
//
// XXH3 finds what disks and copies do to a file; it is no proof against somebody who alters file and sums.
// Memory: one chunk. Files are read through the page cache, holes are not read.
#pragma once

#include "base/result.hpp"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace migrationd::ctl {

inline constexpr std::uint64_t sums_chunk_bytes = std::uint64_t{1} << 20;

std::string sums_path(const std::string& path);

// Reads the file and writes its sums, whole or not at all (a new file, renamed). Returns how many chunks they name.
Result<std::uint64_t> write_sums(const std::string& path);

struct SumsReport {
  std::uint64_t chunks = 0;                  // compared
  std::uint64_t wrong = 0;                   // of them, and those that are there on one side only
  std::optional<std::uint64_t> first_wrong;  // byte offset
};
// Nothing when there is no FILE.sums. Error: the sums are cut off or not of this format; the file has another size.
Result<std::optional<SumsReport>> check_sums(const std::string& path);

// One line of FILE.sums between its head and its end. Pure; for the tests.
struct SumsLine {
  std::uint64_t chunk = 0;
  std::string digest;
};
Result<SumsLine> parse_sums_line(std::string_view line);

}  // namespace migrationd::ctl
