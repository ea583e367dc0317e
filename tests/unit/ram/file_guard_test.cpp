// SPDX-License-Identifier: Apache-2.0
#include "ram/file_guard.hpp"

#include "base/unique_fd.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <utility>

using namespace migrationd;
using namespace migrationd::ram;
using namespace std::chrono_literals;

namespace {

constexpr off_t file_bytes = 64 << 10;

// A file with something in it, in the folder of temporary files.
UniqueFd make_file() {
  std::string path = "/tmp/file-guard-XXXXXX";
  UniqueFd fd(::mkstemp(path.data()));
  REQUIRE(fd);
  REQUIRE(::unlink(path.c_str()) == 0);
  const std::string bytes(file_bytes, 'x');
  REQUIRE(::pwrite(fd.get(), bytes.data(), bytes.size(), 0) == file_bytes);
  return fd;
}

}  // namespace

TEST_CASE("FileGuard.finds_what_was_done_to_a_file") {
  const std::pair<const char*, std::function<bool(int)>> harms[] = {
      {"cut", [](int fd) { return ::ftruncate(fd, file_bytes / 2) == 0; }},
      {"cut and stretched", [](int fd) { return ::ftruncate(fd, 0) == 0 && ::ftruncate(fd, file_bytes) == 0; }},
      {"written", [](int fd) { return ::pwrite(fd, "y", 1, 5) == 1; }},
      {"grown", [](int fd) { return ::pwrite(fd, "y", 1, file_bytes) == 1; }},
      {"punched", [](int fd) { return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0; }},
      {"mapped and written",
       [](int fd) {
         void* const view = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
         if (view == MAP_FAILED) return false;
         *static_cast<volatile char*>(view) = 'y';
         return ::munmap(view, 4096) == 0;
       }},
  };
  for (const auto& [name, harm] : harms) {
    INFO(name);
    const UniqueFd file = make_file();
    auto guard = FileGuard::of(file.get());
    REQUIRE(guard.has_value());
    REQUIRE(bool(guard->check(file.get())));
    if (!harm(file.get())) {
      WARN("skipped in part: this file system cannot: " << name);
      continue;
    }
    auto checked = guard->check(file.get());
    REQUIRE(!checked);
    CHECK(checked.error().text().find("after it was opened") != std::string::npos);
  }
}

TEST_CASE("FileGuard.waits_until_a_second_write_would_be_seen") {
  const UniqueFd file = make_file();
  auto guard = FileGuard::of(file.get());
  REQUIRE(guard.has_value());
  const std::chrono::nanoseconds now = std::chrono::system_clock::now().time_since_epoch();
  CHECK(now - std::chrono::nanoseconds(guard->modified_ns()) >= 20ms);
  REQUIRE(bool(guard->check(file.get())));
}

TEST_CASE("FileGuard.does_not_wait_for_a_clock_that_is_ahead") {
  const UniqueFd file = make_file();
  struct stat about {};
  REQUIRE(::fstat(file.get(), &about) == 0);
  timespec times[2] = {about.st_mtim, about.st_mtim};
  for (timespec& time : times) time.tv_sec += 3600;
  REQUIRE(::futimens(file.get(), times) == 0);
  auto guard = FileGuard::of(file.get());
  REQUIRE(guard.has_value());
  CHECK(bool(guard->check(file.get())));
}
