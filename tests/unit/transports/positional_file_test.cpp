// SPDX-License-Identifier: Apache-2.0
// Reads and writes in flight: the same stories for io_uring and for plain calls.
#include "transports/positional_file.hpp"

#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <vector>

using namespace migrationd;
using namespace migrationd::transports;

namespace {

constexpr std::size_t depth = 4;

// Below the build's folder, because direct I/O wants a real filesystem and /tmp may be none.
struct File {
  std::string path;
  File() {
    std::string name = (std::filesystem::current_path() / "positional-XXXXXX").string();
    UniqueFd made(::mkstemp(name.data()));
    REQUIRE(made);
    path = name;
  }
  ~File() { ::unlink(path.c_str()); }
  UniqueFd open(int flags) const {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
    REQUIRE(fd);
    return fd;
  }
};

struct Pages {
  explicit Pages(std::size_t bytes, int fill)
      : size(bytes), data(static_cast<std::byte*>(std::aligned_alloc(4096, bytes))) {
    std::memset(data, fill, bytes);
  }
  ~Pages() { std::free(data); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::span<std::byte> all() const { return {data, size}; }
  std::size_t size;
  std::byte* data;
};

std::unique_ptr<PositionalFile> engine_over(UniqueFd fd, FileEngine engine, bool direct = false) {
  auto file = make_positional_file(std::move(fd), direct, depth, engine);
  REQUIRE(file.has_value());
  return std::move(*file);
}

std::string failure_of(PositionalFile& file) {
  const auto drained = file.drain();
  REQUIRE_FALSE(bool(drained));
  CHECK(file.in_flight() == 0);
  return drained.error().text();
}

}  // namespace

TEST_CASE("PositionalFile.what_is_written_in_any_order_is_read_again") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  const File on_disk;
  const Pages one(65536, 1);
  const Pages two(4096, 2);
  {
    auto file = engine_over(on_disk.open(O_WRONLY), engine);
    REQUIRE(bool(file->start_write(7, 1 << 20, one.all())));
    REQUIRE(bool(file->start_write(9, 5, two.all().first(10))));
    std::set<PositionalFile::Tag> done;
    while (file->in_flight() > 0) done.insert(file->wait_one().value());
    CHECK(done == std::set<PositionalFile::Tag>{7, 9});
  }
  auto file = engine_over(on_disk.open(O_RDONLY), engine);
  const Pages back(65536, 0);
  const Pages start(4096, 0xff);
  REQUIRE(bool(file->start_read(1, 1 << 20, back.all())));
  REQUIRE(bool(file->start_read(2, 0, start.all().first(16))));
  REQUIRE(bool(file->drain()));
  CHECK(std::memcmp(back.data, one.data, back.size) == 0);
  CHECK(std::memcmp(start.data, "\0\0\0\0\0\2\2\2\2\2\2\2\2\2\2\0", 16) == 0);
}

TEST_CASE("PositionalFile.takes_as_many_as_its_depth_again_and_again") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  const File on_disk;
  auto file = engine_over(on_disk.open(O_WRONLY), engine);
  CHECK(file->depth() == depth);
  const Pages page(4096, 3);
  for (std::uint64_t i = 0; i < 300; ++i) {
    if (file->in_flight() == file->depth()) REQUIRE(file->wait_one().has_value());
    REQUIRE(bool(file->start_write(0, i * 4096, page.all())));
  }
  REQUIRE(bool(file->drain()));
  CHECK(std::filesystem::file_size(on_disk.path) == 300 * 4096);
}

TEST_CASE("PositionalFile.leaves_the_shared_position_alone") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  const File on_disk;
  const UniqueFd mine = on_disk.open(O_RDWR);
  auto file = engine_over(mine.duplicate().value(), engine);
  const Pages page(4096, 3);
  REQUIRE(bool(file->start_write(0, 8192, page.all())));
  REQUIRE(bool(file->drain()));
  CHECK(::lseek(mine.get(), 0, SEEK_CUR) == 0);
}

TEST_CASE("PositionalFile.a_full_disk_is_told_with_the_offset") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  REQUIRE(full);
  auto file = engine_over(std::move(full), engine);
  const Pages page(4096, 3);
  REQUIRE(bool(file->start_write(0, 0x3000, page.all())));
  CHECK(failure_of(*file) == "write at 0x3000 of the file: No space left on device");
}

TEST_CASE("PositionalFile.a_short_write_is_continued_until_the_kernel_refuses") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  const File on_disk;
  auto file = engine_over(on_disk.open(O_WRONLY), engine);
  const Pages pages(65536, 3);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit small{20000, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const auto started = file->start_write(0, 0, pages.all());
  const std::string failure = started ? failure_of(*file) : started.error().text();
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &before) == 0);
  std::signal(SIGXFSZ, old_handler);
  CHECK(failure == "write at 0x4e20 of the file: File too large");
  CHECK(std::filesystem::file_size(on_disk.path) == 20000);
}

TEST_CASE("PositionalFile.a_file_that_ends_too_early_is_told") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  const File on_disk;
  REQUIRE(::truncate(on_disk.path.c_str(), 5000) == 0);
  const Pages back(8192, 0);
  {
    auto file = engine_over(on_disk.open(O_RDONLY), engine);
    REQUIRE(bool(file->start_read(0, 0, back.all())));
    CHECK(failure_of(*file) == "the file ends at 0x1388, 3192 bytes too early: it is cut off");
    REQUIRE(bool(file->start_read(0, 8192, back.all())));
    CHECK(failure_of(*file) == "the file ends at 0x2000, 8192 bytes too early: it is cut off");
  }
  auto direct = engine_over(on_disk.open(O_RDONLY | O_DIRECT), engine, true);
  REQUIRE(bool(direct->start_read(0, 0, back.all())));
  CHECK(failure_of(*direct) == "the file ends at 0x1388, 3192 bytes too early: it is cut off");
}

TEST_CASE("PositionalFile.an_error_leaves_the_others_to_be_waited_for") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  const File on_disk;
  REQUIRE(::truncate(on_disk.path.c_str(), 4096) == 0);
  auto file = engine_over(on_disk.open(O_RDONLY), engine);
  const Pages good(4096, 1);
  const Pages bad(4096, 1);
  REQUIRE(bool(file->start_read(0, 4096, bad.all())));
  REQUIRE(bool(file->start_read(1, 0, good.all())));
  CHECK(failure_of(*file).find("cut off") != std::string::npos);
  CHECK(good.data[0] == std::byte{0});
}

TEST_CASE("PositionalFile.direct_writes_reach_the_file") {
  const auto engine = GENERATE(FileEngine::best, FileEngine::plain);
  const File on_disk;
  auto file = engine_over(on_disk.open(O_WRONLY | O_DIRECT), engine, true);
  CHECK(4096 % file->alignment() == 0);
  CHECK(file->alignment() > 1);
  const Pages pages(1 << 20, 5);
  REQUIRE(bool(file->start_write(0, 1 << 20, pages.all())));
  REQUIRE(bool(file->drain()));
  auto reader = engine_over(on_disk.open(O_RDONLY), engine);
  const Pages back(1 << 20, 0);
  REQUIRE(bool(reader->start_read(0, 1 << 20, back.all())));
  REQUIRE(bool(reader->drain()));
  CHECK(std::memcmp(back.data, pages.data, back.size) == 0);
}

TEST_CASE("PositionalFile.what_has_no_places_is_refused_when_used") {
  // A pipe has no place to write at.
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const UniqueFd reading(ends[0]);
  const UniqueFd writing(ends[1]);
  auto file = engine_over(writing.duplicate().value(), FileEngine::plain);
  const Pages page(4096, 0);
  REQUIRE(bool(file->start_write(0, 0, page.all())));
  CHECK(failure_of(*file) == "write at 0x0 of the file: Illegal seek");
}
