// SPDX-License-Identifier: Apache-2.0
//
// Recorded streams: tests/fixtures/streams/NAME, gzip. The folder is found by an environment variable that Meson sets.
#pragma once

#include "base/bytes.hpp"

#include <zlib.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace migrationd::test {

inline Bytes fixture(const std::string& name) {
  const char* folder = std::getenv("MIGRATIOND_FIXTURES");
  const std::string path = std::string(folder != nullptr ? folder : "tests/fixtures") + "/streams/" + name;
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) {
    std::fprintf(stderr, "fixture %s cannot be opened\n", path.c_str());
    std::abort();
  }
  Bytes out;
  std::array<std::byte, 65536> buffer;
  for (int got = 0; (got = gzread(file, buffer.data(), buffer.size())) > 0;) {
    out.insert(out.end(), buffer.begin(), buffer.begin() + got);
  }
  gzclose(file);
  return out;
}

}  // namespace migrationd::test
