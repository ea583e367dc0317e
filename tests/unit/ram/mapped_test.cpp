// SPDX-License-Identifier: Apache-2.0
// Save to a mapped-ram file and load it again: whatever is dirtied between the passes, memory is equal.
#include "protocol/stream/ram_record.hpp"
#include "ram/mapped_loader.hpp"
#include "ram/page_scanner.hpp"
#include "ram/run_pass.hpp"
#include "ram/sink_mapped.hpp"
#include "ram/store_plain.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/ram/mapped_files.hpp"

#include <sys/stat.h>

#include <chrono>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <thread>

using namespace migrationd;
using namespace migrationd::ram;
using namespace migrationd::ram_test;

namespace {

// What the pages to be sent next are; a dirty log that knows by itself.
struct ListedPages final : DirtyLog {
  std::vector<std::pair<std::size_t, std::size_t>> written;  // block, page
  Result<void> start() override { return {}; }
  Result<std::uint64_t> sync(DirtyBitmaps& dirty) override {
    for (const auto& [block, page] : written) dirty[block].set(page);
    const std::uint64_t count = written.size();
    written.clear();
    return count;
  }
  void stop() noexcept override {}
  std::string_view kind() const noexcept override { return "listed"; }
};

struct Saver {
  Saver(RamMap& source, const File& file, Variant variant)
      : map(source),
        channel(file.open(O_WRONLY, variant.start)),
        writer(*channel),
        sink(SinkMapped::make(map, writer, *channel, file.pages(O_WRONLY, variant), *file.stop, *file.roster, counters,
                              variant.options)
                 .value()),
        scanner(PageScanner::of(map).value()),
        stop(*file.stop) {
    REQUIRE(bool(scanner.begin_first_pass()));
    REQUIRE(bool(sink->write_block_list()));
  }
  void pass() {
    REQUIRE(bool(run_whole_pass(scanner, *sink, stop)));
    REQUIRE(bool(sink->finish_pass()));
    REQUIRE(scanner.begin_pass(&log).has_value());
  }
  void end() {
    REQUIRE(bool(run_whole_pass(scanner, *sink, stop)));
    REQUIRE(bool(sink->finish_pass()));
    REQUIRE(bool(sink->end_memory()));
    REQUIRE(bool(sink->end_body()));
    REQUIRE(bool(writer.flush()));
  }

  RamMap& map;
  std::unique_ptr<FileChannel> channel;
  transports::BufferedWriter writer;
  SendCounters counters;
  std::unique_ptr<SinkMapped> sink;
  PageScanner scanner;
  ListedPages log;
  const StopSource& stop;
};

Result<void> load(RamMap& target, const File& file, Variant variant) {
  const auto channel = file.open(O_RDONLY, variant.start);
  transports::BufferedReader reader(*channel);
  MD_TRY(const auto blocks, read_mapped_setup(reader, *channel));
  MD_TRY(const auto store, StorePlain::make(target));
  ReceiveCounters counters;
  {
    MD_TRY(const auto loader, MappedLoader::make(target, *store, *channel, file.pages(O_RDONLY, variant), *file.stop,
                                                 *file.roster, counters));
    MD_CHECK(loader->load(blocks));
  }
  CHECK(counters.normal_pages.get() + counters.zero_pages.get() == target.total_bytes() / page_size);
  MD_CHECK(store->finish());
  MD_TRY(const ByteView rest, reader.peek(stream::ram_word_bytes));
  return stream::decode_mapped_ram_body(rest).is_ready() ? Result<void>() : wire_error("no EOS behind the blocks");
}

void write_some(RamMap& map, ListedPages& log, std::mt19937& random, int count) {
  for (int i = 0; i < count; ++i) {
    const std::size_t block = random() % map.size();
    const std::size_t page = random() % map.at(block).pages();
    std::byte* const memory = map.at(block).engine() + page * page_size;
    // A third become zero again.
    std::memset(memory, random() % 3 == 0 ? 0 : static_cast<int>(random() % 255 + 1), page_size);
    log.written.emplace_back(block, page);
  }
}

}  // namespace

TEST_CASE("MappedFile.memory_is_equal_after_any_passes") {
  const Variant variant =
      GENERATE(Variant{}, Variant{0, true}, Variant{0x1069f, false, FileEngine::plain},
               Variant{77, true, FileEngine::plain}, Variant{0, false, FileEngine::best, 3},
               Variant{0, true, FileEngine::best, 2}, Variant{0, false, FileEngine::best, 2, {.detect_zeros = false}});
  std::mt19937 random{11};
  RamMap source = map_of({700, 1, 65, 3});
  const File file;
  Saver saver(source, file, variant);
  write_some(source, saver.log, random, 500);
  saver.log.written.clear();
  for (int pass = 0; pass < 4; ++pass) {
    write_some(source, saver.log, random, 200);
    saver.pass();
  }
  saver.end();
  RamMap target = map_of({700, 1, 65, 3});
  // What was there before must not shine through.
  for (std::size_t index = 0; index < target.size(); ++index)
    std::memset(target.at(index).engine(), 0xa5, target.at(index).length() / 2 / page_size * page_size);
  const auto loaded = load(target, file, variant);
  INFO((loaded ? std::string() : loaded.error().text()));
  REQUIRE(bool(loaded));
  CHECK(equal(source, target));
}

TEST_CASE("MappedFile.its_workers_stand_in_the_roster_while_they_work") {
  RamMap source = map_of({3});
  const File file;
  {
    Saver saver(source, file, Variant{0, false, FileEngine::best, 3});
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (file.roster->list().size() < 3 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    std::set<std::string> names;
    for (const auto& entry : file.roster->list()) names.insert(entry.name);
    CHECK(names == std::set<std::string>{"mig/src/send_0", "mig/src/send_1", "mig/src/send_2"});
    saver.end();
  }
  CHECK(file.roster->list().empty());
}

TEST_CASE("MappedFile.a_page_that_became_zero_does_not_come_back") {
  const Variant variant;
  RamMap source = map_of({4});
  const File file;
  std::memset(source.at(0).engine() + page_size, 7, page_size);
  Saver saver(source, file, variant);
  REQUIRE(bool(run_whole_pass(saver.scanner, *saver.sink, saver.stop)));
  REQUIRE(bool(saver.sink->finish_pass()));
  std::memset(source.at(0).engine() + page_size, 0, page_size);
  saver.log.written.emplace_back(0, 1);
  REQUIRE(saver.scanner.begin_pass(&saver.log).has_value());
  saver.end();
  // The old bytes are still in the file; only the bit says that they are nothing.
  const auto channel = file.open(O_RDONLY, 0);
  std::byte old{};
  REQUIRE(bool(channel->read_at((1 << 20) + page_size, {&old, 1})));
  CHECK(old == std::byte{7});
  RamMap target = map_of({4});
  REQUIRE(bool(load(target, file, variant)));
  CHECK(equal(source, target));
}

TEST_CASE("MappedFile.holes_and_zeros_cost_no_disk") {
  RamMap source = map_of({100000});
  std::memset(source.at(0).engine(), 0, 1000 * page_size);  // zeros that are data to the memfd
  std::memset(source.at(0).engine() + 5000 * page_size, 1, page_size);
  const File file;
  Saver saver(source, file, {});
  saver.end();
  struct stat about {};
  REQUIRE(::stat(file.path.c_str(), &about) == 0);
  CHECK(about.st_size > 100000 * 4096);
  CHECK(about.st_blocks * 512 < 256 << 10);
}

TEST_CASE("MappedFile.a_full_disk_ends_the_save_with_the_reason") {
  RamMap source = map_of({600});
  std::memset(source.at(0).engine(), 1, source.at(0).length());
  const File file;
  const auto channel = file.open(O_WRONLY, 0);
  transports::BufferedWriter writer(*channel);
  SendCounters counters;
  const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  auto pages = transports::share_positional_file(full.get(), false, 8, GENERATE(1, 3),
                                                 GENERATE(FileEngine::best, FileEngine::plain));
  REQUIRE(pages.has_value());
  auto sink =
      SinkMapped::make(source, writer, *channel, std::move(*pages), *file.stop, *file.roster, counters, {}).value();
  auto scanner = PageScanner::of(source).value();
  REQUIRE(bool(scanner.begin_first_pass()));
  REQUIRE(bool(sink->write_block_list()));
  auto sent = run_whole_pass(scanner, *sink, *file.stop);
  if (sent) sent = sink->finish_pass();
  REQUIRE_FALSE(bool(sent));
  CHECK(file.stop->requested());
  REQUIRE(sink->failure());
  CHECK(sink->failure()->text().find("No space left on device") != std::string::npos);
}

TEST_CASE("FileChannel.its_first_bytes_are_written_last") {
  const File file;
  const std::string text = "QEVM....and the rest";
  const auto on_disk = [&file] {
    Bytes bytes(20);
    REQUIRE(bool(file.open(O_RDONLY, 0)->read_at(3, bytes)));
    return bytes;
  };
  auto channel = file.open(O_WRONLY, 3);
  channel->write_mark_last();
  // In pieces that end within the mark.
  for (const auto& [from, count] : {std::pair{0, 5}, std::pair{5, 6}, std::pair{11, 9}}) {
    const iovec piece{const_cast<char*>(text.data() + from), static_cast<std::size_t>(count)};
    REQUIRE(bool(channel->write({&piece, 1})));
  }
  const std::string expected = std::string(8, '\0') + text.substr(8);
  CHECK(std::ranges::equal(on_disk(), as_bytes(expected)));
  REQUIRE(bool(channel->finish_writing()));
  REQUIRE(bool(channel->sync_to_disk()));
  CHECK(std::ranges::equal(on_disk(), as_bytes(text)));
}
