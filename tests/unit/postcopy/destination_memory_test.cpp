// SPDX-License-Identifier: Apache-2.0
//
// Faults for real: threads that touch pages which are still to come. Skipped, with the reason, where this process may
// not have a userfaultfd.
#include "postcopy/fault_thread.hpp"
#include "postcopy/guest_memory.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/transports/channels.hpp"
#include "transports/buffered.hpp"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>

using namespace migrationd;
using namespace migrationd::postcopy;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t block_pages = 16;

// A block, its two views, and everything between a fault and the source.
struct Guest {
  ram::RamMap map;
  ram::Mapping view;
  std::unique_ptr<ram::LocalSpace> space;
  std::unique_ptr<StopSource> stop = testing::make_stop();
  testing::ChannelPair pair = testing::make_channel_pair(*stop, *stop);
  std::unique_ptr<DestinationPages> pages;
  std::unique_ptr<ReturnChannel> requests;
  std::unique_ptr<GuestMemory> memory;
  std::unique_ptr<FaultThread> faults;

  explicit Guest(std::size_t backing = ram::page_size) {
    auto block = ram::RamBlock::create("ram", block_pages * backing, backing);
    REQUIRE(block.has_value());
    REQUIRE(map.add(std::move(*block)).has_value());
    auto mapped = ram::Mapping::of_fd(map.at(0).fd(), map.at(0).length());
    REQUIRE(mapped.has_value());
    view = std::move(*mapped);
    space = std::make_unique<ram::LocalSpace>(std::vector<std::byte*>{view.data()});
    pages = std::make_unique<DestinationPages>(
        std::vector<BlockShape>{{"ram", map.at(0).pages(), backing / ram::page_size}});
    requests = std::make_unique<ReturnChannel>(pages->blocks());
    REQUIRE(requests->open(*pair.left).has_value());
  }
  void listen() {
    auto opened = GuestMemory::open(map, *space);
    REQUIRE(opened.has_value());
    memory = std::move(*opened);
    auto started = FaultThread::start(*memory, *pages, *requests);
    REQUIRE(started.has_value());
    faults = std::move(*started);
  }
  void place(std::uint64_t page, int value) {
    std::vector<std::byte> bytes(map.at(0).backing_page(), std::byte(value));
    REQUIRE(memory->place(0, page, bytes.data()).has_value());
    pages->note_received(0, page, map.at(0).backing_page() / ram::page_size);
  }
  int read(std::uint64_t page) const {
    return static_cast<int>(*static_cast<volatile std::byte*>(view.data() + page * ram::page_size));
  }
  void end() {
    faults.reset();
    REQUIRE(memory->close().has_value());
  }
};

bool may_fault() {
  const ram::RamMap none;
  auto can = check_userfaultfd(none);
  if (can) return true;
  WARN("skipped: " << can.error().text());
  return false;
}

bool comes_true(const std::function<bool()>& condition) {
  for (int i = 0; i < 30000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(1ms);
  }
  return false;
}

}  // namespace

TEST_CASE("GuestMemory.says_what_would_help_where_there_is_no_userfaultfd") {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    // Not one more descriptor.
    const rlimit none{0, 0};
    const ram::RamMap map;
    if (::setrlimit(RLIMIT_NOFILE, &none) != 0) ::_exit(1);
    auto can = check_userfaultfd(map);
    if (can) ::_exit(2);
    for (const char* const words : {"postcopy needs userfaultfd", "/dev/userfaultfd", "vm.unprivileged_userfaultfd",
                                    "DeviceAllow=", "CAP_SYS_PTRACE", "SystemCallFilter"}) {
      if (can.error().text().find(words) == std::string::npos) ::_exit(3);
    }
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("GuestMemory.makes_who_touches_a_missing_page_wait_for_its_bytes") {
  if (!may_fault()) return;
  Guest guest;
  guest.listen();
  std::atomic<int> seen{-1};
  std::thread reader([&] { seen = guest.read(3); });
  REQUIRE(comes_true([&] { return guest.pages->outstanding() == 1; }));
  CHECK(seen == -1);
  transports::BufferedReader from(*guest.pair.right);
  auto message = from.peek(4 + 13 + 3);
  REQUIRE(message.has_value());
  auto decoded = stream::decode_return_message(*message);
  REQUIRE(decoded.is_ready());
  const auto* request = std::get_if<stream::reply::RequestPages>(&decoded.value());
  REQUIRE(request != nullptr);
  CHECK(request->start == 3 * ram::page_size);
  CHECK(request->length == ram::page_size);
  CHECK(request->block == "ram");
  guest.place(3, 42);
  reader.join();
  CHECK(seen == 42);
  guest.end();
}

TEST_CASE("GuestMemory.wakes_all_who_wait_for_one_page_and_asks_once") {
  if (!may_fault()) return;
  Guest guest;
  guest.listen();
  std::atomic<int> right{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 8; ++i) readers.emplace_back([&] { right += guest.read(5) == 7 ? 1 : 0; });
  REQUIRE(comes_true([&] { return guest.faults->faults() >= 8; }));
  CHECK(guest.pages->outstanding() == 1);
  guest.place(5, 7);
  for (std::thread& reader : readers) reader.join();
  CHECK(right == 8);
  guest.end();
}

TEST_CASE("GuestMemory.gives_zeros_for_a_page_that_came_as_zero") {
  if (!may_fault()) return;
  Guest guest;
  guest.pages->note_received(0, 1, 1);  // before LISTEN, as a zero record: a hole
  guest.listen();
  CHECK(guest.read(1) == 0);
  CHECK(guest.pages->outstanding() == 0);
  guest.end();
}

TEST_CASE("GuestMemory.keeps_what_the_guest_wrote_when_a_page_comes_again") {
  if (!may_fault()) return;
  Guest guest;
  guest.listen();
  guest.place(2, 9);
  guest.view.data()[2 * ram::page_size] = std::byte{10};
  guest.place(2, 11);
  CHECK(guest.read(2) == 10);
  REQUIRE(guest.memory->place_zero(0, 2).has_value());
  CHECK(guest.read(2) == 10);
  guest.end();
}

TEST_CASE("GuestMemory.lets_waiters_go_on_with_zeros_only_at_the_end") {
  if (!may_fault()) return;
  Guest guest;
  guest.listen();
  std::atomic<int> seen{-1};
  std::thread reader([&] { seen = guest.read(6); });
  REQUIRE(comes_true([&] { return guest.pages->outstanding() == 1; }));
  std::this_thread::sleep_for(20ms);
  CHECK(seen == -1);
  guest.end();  // the source has said that everything was sent
  reader.join();
  CHECK(seen == 0);
  // And the engine sees the memory again.
  CHECK(static_cast<int>(guest.map.at(0).engine()[0]) == 0);
}

TEST_CASE("GuestMemory.asks_nothing_while_the_return_path_is_closed_and_remembers") {
  if (!may_fault()) return;
  Guest guest;
  guest.listen();
  guest.requests->close();
  std::thread reader([&] { guest.read(4); });
  REQUIRE(comes_true([&] { return guest.pages->outstanding() == 1; }));
  const std::vector<HostPage> waited{{0, 4}};
  CHECK(guest.pages->outstanding_pages() == waited);
  guest.place(4, 1);
  reader.join();
  guest.end();
}

TEST_CASE("GuestMemory.ends_a_process_whose_engine_touches_a_missing_page") {
  if (!may_fault()) return;
  for (const bool write : {false, true}) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::signal(SIGSEGV, SIG_DFL);
      Guest guest;
      auto opened = GuestMemory::open(guest.map, *guest.space);
      if (!opened) ::_exit(1);
      auto* const engine = static_cast<volatile std::byte*>(guest.map.at(0).engine());
      if (write) {
        *engine = std::byte{1};
      } else if (*engine == std::byte{0}) {
        ::_exit(2);
      }
      ::_exit(3);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
  }
}

TEST_CASE("GuestMemory.leaves_waiters_asleep_when_it_is_abandoned") {
  if (!may_fault()) return;
  // In a child: its waiter never wakes, only the process's end ends it.
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    auto* const guest = new Guest;
    guest->listen();
    static std::atomic<int> seen{-1};
    std::thread([guest] { seen = guest->read(3); }).detach();
    for (int i = 0; i < 30000 && guest->pages->outstanding() != 1; ++i) std::this_thread::sleep_for(1ms);
    guest->faults.reset();
    guest->memory->abandon();
    guest->memory.reset();
    std::this_thread::sleep_for(100ms);
    ::_exit(seen == -1 ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("GuestMemory.places_huge_pages_whole") {
  if (!may_fault()) return;
  auto probe = ram::RamBlock::create("probe", block_pages * ram::huge_page_size, ram::huge_page_size);
  if (!probe) {
    WARN("skipped: " << probe.error().text());
    return;
  }
  probe->reset();
  Guest guest(ram::huge_page_size);
  guest.listen();
  std::atomic<int> seen{-1};
  std::thread reader([&] { seen = guest.read(512 + 100); });
  REQUIRE(comes_true([&] { return guest.pages->outstanding() == 1; }));
  guest.place(512, 5);
  reader.join();
  CHECK(seen == 5);
  REQUIRE(guest.memory->place_zero(0, 1024).has_value());
  CHECK(guest.read(1025) == 0);
  guest.end();
}
