// SPDX-License-Identifier: Apache-2.0
//
// What the tests of mapped-ram files share: machines without contents, and a file that goes when they end.
#pragma once

#include "base/thread_roster.hpp"
#include "ram/ram_map.hpp"
#include "ram/sink_mapped.hpp"
#include "tests/unit/catch.hpp"
#include "transports/file_channel.hpp"
#include "transports/positional_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

namespace migrationd::ram_test {

using namespace migrationd::ram;
using transports::FileChannel;
using transports::FileEngine;

inline RamMap map_of(std::initializer_list<std::size_t> pages) {
  RamMap map;
  for (const std::size_t count : pages) {
    auto block = RamBlock::create("block" + std::to_string(map.size()), count * page_size, page_size);
    REQUIRE(block.has_value());
    REQUIRE(bool(map.add(std::move(*block))));
  }
  return map;
}

inline bool equal(const RamMap& a, const RamMap& b) {
  for (std::size_t index = 0; index < a.size(); ++index)
    if (std::memcmp(a.at(index).engine(), b.at(index).engine(), a.at(index).length()) != 0) return false;
  return true;
}

struct Variant {
  std::uint64_t start = 0;
  bool direct = false;
  FileEngine engine = FileEngine::best;
  std::size_t workers = 1;
  SinkMapped::Options options{};
};

struct File {
  std::string path;
  std::unique_ptr<StopSource> stop = StopSource::make().value();
  std::unique_ptr<ThreadRoster> roster = std::make_unique<ThreadRoster>();
  File() {
    std::string name = (std::filesystem::current_path() / "mapped-XXXXXX").string();
    const UniqueFd made(::mkstemp(name.data()));
    REQUIRE(made);
    path = name;
  }
  File(const File&) = delete;
  ~File() {
    if (owns_) ::unlink(path.c_str());
  }
  // The same file for another attempt, with a stop of its own; this one outlives it.
  File again() const { return File(path); }

  std::unique_ptr<FileChannel> open(int flags, std::uint64_t start) const {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
    REQUIRE(fd);
    return std::make_unique<FileChannel>(std::move(fd), start, *stop, "file");
  }
  std::vector<std::unique_ptr<transports::PositionalFile>> pages(int flags, const Variant& variant) const {
    const UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC | (variant.direct ? O_DIRECT : 0)));
    REQUIRE(fd);
    auto files = transports::share_positional_file(fd.get(), variant.direct, 8, variant.workers, variant.engine);
    REQUIRE(files.has_value());
    return std::move(*files);
  }

 private:
  explicit File(std::string existing) : path(std::move(existing)), owns_(false) {}
  bool owns_ = true;
};

}  // namespace migrationd::ram_test
