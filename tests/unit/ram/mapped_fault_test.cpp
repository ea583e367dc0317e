// SPDX-License-Identifier: Apache-2.0
// Mapped-ram files on a disk that fails: every single operation in turn, and a file that is cut while it is read.
// Whatever fails, the save or the load ends with the reason, and nobody waits for ever.
#include "ram/mapped_loader.hpp"
#include "ram/page_scanner.hpp"
#include "ram/run_pass.hpp"
#include "ram/sink_mapped.hpp"
#include "ram/store_plain.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/ram/mapped_files.hpp"
#include "tests/unit/sampled.hpp"

#include <atomic>
#include <cstring>
#include <functional>

using namespace migrationd;
using namespace migrationd::ram;
using namespace migrationd::ram_test;

namespace {

// One operation, counted over all files of a test, goes wrong.
struct Fault {
  std::uint64_t number = 0;
  int err = EIO;
  std::function<void()> instead;  // done before that operation, which then goes its way
  std::atomic<std::uint64_t> seen{0};

  Result<void> strike(const char* what) {
    if (seen.fetch_add(1) != number) return {};
    if (!instead) return Error::from_errno(what, err);
    instead();
    return {};
  }
};

// Fails when the operation is done, as a disk does, and lets the others be.
class FaultyFile final : public transports::PositionalFile {
 public:
  FaultyFile(std::unique_ptr<PositionalFile> file, Fault& fault) : file_(std::move(file)), fault_(fault) {}
  std::size_t depth() const noexcept override { return file_->depth(); }
  std::size_t in_flight() const noexcept override { return file_->in_flight(); }
  std::size_t alignment() const noexcept override { return file_->alignment(); }
  Result<void> start_read(Tag tag, std::uint64_t offset, std::span<std::byte> into) override {
    note(fault_.strike("read"));
    return file_->start_read(tag, offset, into);
  }
  Result<void> start_write(Tag tag, std::uint64_t offset, ByteView from) override {
    note(fault_.strike("write"));
    return file_->start_write(tag, offset, from);
  }
  Result<Tag> wait_one() override {
    auto done = file_->wait_one();
    if (failed_) {
      Error error = std::move(*failed_);
      failed_.reset();
      return error;
    }
    return done;
  }

 private:
  void note(Result<void> struck) {
    if (!struck) failed_ = std::move(struck).error();
  }
  std::unique_ptr<PositionalFile> file_;
  Fault& fault_;
  std::optional<Error> failed_;
};

class FaultyChannel final : public transports::SeekableChannel {
 public:
  FaultyChannel(std::unique_ptr<FileChannel> file, Fault& fault) : file_(std::move(file)), fault_(fault) {}
  Result<std::size_t> read(std::span<const iovec> into) override {
    MD_CHECK(fault_.strike("stream"));
    return file_->read(into);
  }
  Result<void> write(std::span<const iovec> from) override {
    MD_CHECK(fault_.strike("stream"));
    return file_->write(from);
  }
  void shutdown() noexcept override {}
  Result<void> finish_writing() override { return file_->finish_writing(); }
  bool bidirectional() const noexcept override { return false; }
  bool is_file() const noexcept override { return true; }
  Result<void> sync_to_disk() override { return file_->sync_to_disk(); }
  std::string describe() const override { return file_->describe(); }
  int readable_fd() const noexcept override { return -1; }
  std::uint64_t position() const noexcept override { return file_->position(); }
  void seek(std::uint64_t position) noexcept override { file_->seek(position); }
  Result<std::uint64_t> size() const override { return file_->size(); }
  Result<void> read_at(std::uint64_t offset, std::span<std::byte> into) override {
    MD_CHECK(fault_.strike("bitmap"));
    return file_->read_at(offset, into);
  }
  Result<void> write_at(std::uint64_t offset, ByteView from) override {
    MD_CHECK(fault_.strike("bitmap"));
    return file_->write_at(offset, from);
  }

 private:
  std::unique_ptr<FileChannel> file_;
  Fault& fault_;
};

std::vector<std::unique_ptr<transports::PositionalFile>> faulty(
    std::vector<std::unique_ptr<transports::PositionalFile>> files, Fault& fault) {
  for (auto& file : files) file = std::make_unique<FaultyFile>(std::move(file), fault);
  return files;
}

// Runs of data with holes and zeros between them, in two blocks.
RamMap machine() {
  RamMap map = map_of({1500, 40});
  for (std::size_t page = 0; page < 1500; ++page)
    if (page % 300 < 200)
      std::memset(map.at(0).engine() + page * page_size, static_cast<int>(page % 250 + 1), page_size);
  std::memset(map.at(1).engine(), 9, 40 * page_size);
  return map;
}

Result<void> save(RamMap& map, const File& file, const Variant& variant, Fault& fault) {
  FaultyChannel channel(file.open(O_WRONLY, 0), fault);
  transports::BufferedWriter writer(channel);
  SendCounters counters;
  MD_TRY(const auto sink, SinkMapped::make(map, writer, channel, faulty(file.pages(O_WRONLY, variant), fault),
                                           *file.stop, *file.roster, counters, variant.options));
  const auto steps = [&]() -> Result<void> {
    MD_TRY(auto scanner, PageScanner::of(map));
    MD_CHECK(scanner.begin_first_pass());
    MD_CHECK(sink->write_block_list());
    MD_CHECK(sink->end_body());
    MD_CHECK(writer.flush());
    MD_CHECK(run_whole_pass(scanner, *sink, *file.stop));
    MD_CHECK(sink->finish_pass());
    MD_CHECK(sink->end_memory());
    MD_CHECK(sink->end_body());
    return writer.flush();
  };
  auto done = steps();
  // As the source does it.
  if (!done && done.error().is_cancelled() && sink->failure()) return *sink->failure();
  return done;
}

Result<void> load(RamMap& map, const File& file, const Variant& variant, Fault& fault) {
  FaultyChannel channel(file.open(O_RDONLY, 0), fault);
  transports::BufferedReader reader(channel);
  MD_TRY(const auto blocks, read_mapped_setup(reader, channel));
  MD_TRY(const auto store, StorePlain::make(map));
  ReceiveCounters counters;
  MD_TRY(const auto loader, MappedLoader::make(map, *store, channel, faulty(file.pages(O_RDONLY, variant), fault),
                                               *file.stop, *file.roster, counters));
  MD_CHECK(loader->load(blocks));
  return store->finish();
}

constexpr std::uint64_t most_operations = 200;
constexpr std::uint64_t step = sampling ? 7 : 1;  // of the operations, every one or some

}  // namespace

TEST_CASE("MappedFault.a_save_fails_with_the_reason_at_every_write") {
  const Variant variant = GENERATE(Variant{}, Variant{0, true}, Variant{0, false, FileEngine::plain},
                                   Variant{0, false, FileEngine::best, 3});
  const int err = GENERATE(EIO, ENOSPC);
  RamMap source = machine();
  std::uint64_t number = 0;
  for (; number < most_operations; number += step) {
    const File file;
    Fault fault;
    fault.number = number;
    fault.err = err;
    const auto saved = save(source, file, variant, fault);
    if (saved) break;
    INFO("operation " << number << ": " << saved.error().text());
    REQUIRE(saved.error().sys_errno() == err);
    REQUIRE(saved.error().text().find(std::strerror(err)) != std::string::npos);
  }
  // Headers, pages and bitmaps were all among them.
  CHECK(number > 10);
  CHECK(number < most_operations);
}

TEST_CASE("MappedFault.a_load_fails_with_the_reason_at_every_read") {
  const Variant variant = GENERATE(Variant{}, Variant{0, true}, Variant{0, false, FileEngine::plain},
                                   Variant{0, false, FileEngine::best, 3});
  const bool warm = GENERATE(false, true);
  RamMap source = machine();
  const File file;
  Fault none;
  none.number = most_operations;
  REQUIRE(bool(save(source, file, variant, none)));
  std::uint64_t number = 0;
  for (; number < most_operations; number += step) {
    File again = file.again();
    Fault fault;
    fault.number = number;
    RamMap target = map_of({1500, 40});
    if (warm) std::memset(target.at(0).engine(), 0xa5, target.at(0).length());
    const auto loaded = load(target, again, variant, fault);
    if (loaded) {
      CHECK(equal(source, target));
      break;
    }
    INFO("operation " << number << ": " << loaded.error().text());
    REQUIRE(loaded.error().sys_errno() == EIO);
    REQUIRE_FALSE(loaded.error().is_cancelled());
  }
  CHECK(number > 4);
  CHECK(number < most_operations);
}

TEST_CASE("MappedFault.a_file_cut_at_any_moment_of_a_load_is_an_error_or_was_read_before") {
  const Variant variant = GENERATE(Variant{}, Variant{0, true}, Variant{0, false, FileEngine::best, 2});
  RamMap source = machine();
  int failures = 0;
  for (std::uint64_t number = 0; number < most_operations; number += step) {
    const File file;
    Fault none;
    none.number = most_operations;
    REQUIRE(bool(save(source, file, variant, none)));
    Fault fault;
    fault.number = number;
    // In the middle of a page of the first block.
    std::atomic<int> cut{0};
    fault.instead = [&] { cut = ::truncate(file.path.c_str(), (1 << 20) + 70 * page_size + 100); };
    RamMap target = map_of({1500, 40});
    const auto loaded = load(target, file, variant, fault);
    REQUIRE(cut == 0);
    if (!loaded) {
      ++failures;
      INFO("operation " << number << ": " << loaded.error().text());
      REQUIRE(loaded.error().kind() == ErrorKind::wire);
      continue;
    }
    CHECK(equal(source, target));
    if (fault.seen <= number) break;
  }
  CHECK(failures > (sampling ? 0 : 3));
}
