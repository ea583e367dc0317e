// SPDX-License-Identifier: Apache-2.0
// Userfaultfds for the daemon: fresh ones per purpose, and what becomes of them, and of who waits, when the daemon
// dies.
#include "tests/unit/guest/recorder.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <filesystem>
#include <thread>

using namespace migrationd;
using namespace migrationd::guest;
using namespace migrationd::guest::test;

namespace {

constexpr std::uint64_t missing_shmem = UFFD_FEATURE_MISSING_SHMEM;
constexpr std::uint64_t wp_shmem = std::uint64_t{1} << 12;  // Linux 5.19; Debian 12's headers are older
constexpr std::uint64_t wp_async = std::uint64_t{1} << 15;  // Linux 6.7

// The daemon's descriptors; empty when this machine gives no userfaultfd of this kind, which is said.
std::vector<UniqueFd> watch(FakeDaemon& daemon, Purpose purpose, std::uint64_t features) {
  auto answer = daemon.call(Type::watch, Watch{purpose, features});
  REQUIRE(answer.has_value());
  if (const std::string why = FakeDaemon::sentence_of(*answer); !why.empty()) {
    WARN("skip: " << why);
    return {};
  }
  return std::move(answer->fds);
}

// Userfaultfds of this process, duplicates too.
std::size_t userfaultfds() {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone).string().find("[userfaultfd]") != std::string::npos) ++count;
  }
  return count;
}

void register_block(int fd, const Subject& subject, std::uint64_t mode) {
  uffdio_register request{};
  request.range = {reinterpret_cast<std::uintptr_t>(subject.memory), 1 << 20};
  request.mode = mode;
  REQUIRE(::ioctl(fd, UFFDIO_REGISTER, &request) == 0);
}

void protect_block(int fd, const Subject& subject) {
  uffdio_writeprotect request{};
  request.range = {reinterpret_cast<std::uintptr_t>(subject.memory), 1 << 20};
  request.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  REQUIRE(::ioctl(fd, UFFDIO_WRITEPROTECT, &request) == 0);
}

// A thread that waits at the first page; proved by the fault that arrived.
void wait_for_fault(int fd) {
  pollfd waits{fd, POLLIN, 0};
  REQUIRE(::poll(&waits, 1, 30000) == 1);
  uffd_msg message{};
  REQUIRE(::read(fd, &message, sizeof message) == sizeof message);
  REQUIRE(message.event == UFFD_EVENT_PAGEFAULT);
}

}  // namespace

TEST_CASE("GuestWatch.gives_a_fresh_userfaultfd_and_its_pagemap_until_unwatch") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  const std::size_t before = userfaultfds();
  {
    const auto fds = watch(daemon, Purpose::protect_async, wp_async | wp_shmem | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
    if (fds.empty()) return;
    REQUIRE(fds.size() == 2);
    register_block(fds[0].get(), subject, UFFDIO_REGISTER_MODE_WP);
    subject.memory[0] = std::byte{1};
    std::uint64_t entry = 0;
    const auto page = reinterpret_cast<std::uintptr_t>(subject.memory) / 4096;
    REQUIRE(::pread(fds[1].get(), &entry, sizeof entry, static_cast<off_t>(page * sizeof entry)) == sizeof entry);
    CHECK((entry >> 63) == 1);  // present
    CHECK(daemon.why_not(Type::watch, Watch{Purpose::protect_async, 0}) ==
          "a watch for asynchronous write protection is open already");
  }
  daemon.must(Type::unwatch, Unwatch{Purpose::protect_async});
  CHECK(userfaultfds() == before);
  CHECK(daemon.why_not(Type::unwatch, Unwatch{Purpose::protect_async}) ==
        "no watch for asynchronous write protection is open");
  CHECK(daemon.why_not(Type::watch, Watch{Purpose::missing, std::uint64_t{1} << 60}).find("lacks features") !=
        std::string::npos);
}

TEST_CASE("GuestWatch.a_device_that_came_with_the_welcome_is_used") {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device) {
    WARN("skip: /dev/userfaultfd may not be opened here");
    return;
  }
  Subject subject;
  FakeDaemon daemon;
  auto attached =
      std::async(std::launch::async, [&] { return md_guest_attach(subject.get(), daemon.path(), MD_RUNNING); });
  daemon.accept();
  for (int packets = 0; packets < 4; ++packets) {
    const auto next = daemon.receive();
    REQUIRE(next.has_value());
    if (next->header.type == static_cast<std::uint16_t>(Type::hello)) {
      const int fds[] = {device.get()};
      daemon.reply(*next, Welcome{protocol_version, "fake daemon", 5000}, fds);
    } else {
      daemon.reply(*next, Empty{});
    }
  }
  REQUIRE(attached.get() == 0);
  CHECK(watch(daemon, Purpose::missing, missing_shmem).size() == 1);
  daemon.must(Type::unwatch, Unwatch{Purpose::missing});
}

TEST_CASE("GuestWatch.asynchronous_protection_ends_with_the_daemon") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  const std::size_t before = userfaultfds();
  if (watch(daemon, Purpose::protect_async, wp_async | wp_shmem).empty()) return;
  daemon.die();
  REQUIRE(subject.recorder.wait_for("event 4 "));
  CHECK(userfaultfds() == before);
}

TEST_CASE("GuestWatch.who_waits_for_protected_memory_goes_on_when_the_daemon_dies") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  subject.memory[0] = std::byte{1};
  const std::size_t before = userfaultfds();
  auto fds = watch(daemon, Purpose::protect_sync, wp_shmem | UFFD_FEATURE_PAGEFAULT_FLAG_WP);
  if (fds.empty()) return;
  register_block(fds[0].get(), subject, UFFDIO_REGISTER_MODE_WP);
  protect_block(fds[0].get(), subject);
  std::thread writer([&] { subject.memory[0] = std::byte{2}; });
  wait_for_fault(fds[0].get());
  daemon.die();  // its duplicate stays open here, as one of a hung daemon would
  REQUIRE(subject.recorder.wait_for("event 4 "));
  writer.join();
  CHECK(subject.memory[0] == std::byte{2});
  fds.clear();
  CHECK(userfaultfds() == before);
}

TEST_CASE("GuestWatch.who_waits_for_a_missing_page_is_never_given_zeros") {
  auto subject = std::make_unique<Subject>();
  FakeDaemon daemon;
  attach(subject->get(), daemon, MD_RUNNING);
  const std::size_t before = userfaultfds();
  auto fds = watch(daemon, Purpose::missing, missing_shmem);
  if (fds.empty()) return;
  register_block(fds[0].get(), *subject, UFFDIO_REGISTER_MODE_MISSING);
  std::atomic<int> seen = -1;
  std::byte* const memory = subject->memory;
  std::thread reader([&] { seen = static_cast<int>(*static_cast<volatile std::byte*>(memory)); });
  wait_for_fault(fds[0].get());
  UniqueFd kept = std::move(fds[0]);  // to end the test with; the library must not depend on it
  daemon.die();
  REQUIRE(subject->recorder.wait_for("event 4 "));
  CHECK(userfaultfds() == before + 2);
  CHECK(md_guest_attach(subject->get(), daemon.path(), MD_RUNNING) == -1);
  CHECK(subject->error().find("memory that was still to come was lost with the last daemon") == 0);
  CHECK(seen == -1);
  // The page comes after all, from whoever held the descriptor.
  alignas(4096) static std::byte page[4096];
  page[0] = std::byte{42};
  uffdio_copy copy{};
  copy.dst = reinterpret_cast<std::uintptr_t>(memory);
  copy.src = reinterpret_cast<std::uintptr_t>(page);
  copy.len = 4096;
  REQUIRE(::ioctl(kept.get(), UFFDIO_COPY, &copy) == 0);
  reader.join();
  CHECK(seen == 42);
  kept.reset();
  subject.reset();
  CHECK(userfaultfds() == before + 1);  // left open on purpose
}

TEST_CASE("GuestWatch.memory_given_back_before_it_came_is_zero_and_stays_so") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  auto fds = watch(daemon, Purpose::missing, missing_shmem);
  if (fds.empty()) return;
  register_block(fds[0].get(), subject, UFFDIO_REGISTER_MODE_MISSING);
  alignas(4096) static std::byte page[4096];
  page[0] = std::byte{42};
  uffdio_copy copy{};
  copy.src = reinterpret_cast<std::uintptr_t>(page);
  copy.len = 4096;
  copy.dst = reinterpret_cast<std::uintptr_t>(subject.memory);
  REQUIRE(::ioctl(fds[0].get(), UFFDIO_COPY, &copy) == 0);
  // The first page came, the second is still to come.
  REQUIRE(md_guest_give_back(subject.get(), "ram", 0, 8192) == 0);
  copy.dst += 4096;
  CHECK(::ioctl(fds[0].get(), UFFDIO_COPY, &copy) == -1);
  CHECK(errno == EEXIST);
  CHECK(subject.memory[0] == std::byte{0});
  CHECK(subject.memory[4096] == std::byte{0});
  // Nothing is to come any more: it is punched out.
  fds.clear();
  REQUIRE(daemon.receive()->header.type == static_cast<std::uint16_t>(Type::given_back));
  daemon.must(Type::unwatch, Unwatch{Purpose::missing});
  REQUIRE(md_guest_give_back(subject.get(), "ram", 0, 8192) == 0);
  CHECK(subject.memory[4096] == std::byte{0});
}
