// SPDX-License-Identifier: Apache-2.0
//
// The loopback page server's limit: how soon a page can come that a thread touches, with nothing done but what cannot
// be left out. fault-limit-bench FAULTS LOAD, LOAD 0 or 1.
//
//   a thread touches a page   -> the fault is read from the userfaultfd -> 8 bytes to another process over a unix
//   socket the page comes back       -> another thread reads it -> UFFDIO_COPY  -> the first thread runs on
//
// With LOAD a second pair of processes and threads moves pages in the same way as fast as it can, unasked: the CPU load
// of a background stream. Prints "us VALUE" per fault: the toucher's own clock around its touch.
#include "base/unique_fd.hpp"
#include "ram/userfaultfd.hpp"

#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

using namespace migrationd;

namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t load_pages = 16384;

struct Record {
  std::uint64_t number;
  std::byte bytes[page];
};

bool read_all(int fd, void* into, std::size_t size) {
  auto* at = static_cast<char*>(into);
  while (size > 0) {
    const ssize_t got = ::read(fd, at, size);
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

bool write_all(int fd, const void* from, std::size_t size) {
  const auto* at = static_cast<const char*>(from);
  while (size > 0) {
    const ssize_t put = ::write(fd, at, size);
    if (put <= 0) return false;
    at += put;
    size -= static_cast<std::size_t>(put);
  }
  return true;
}

// The other process: answers requests, or sends pages unasked. It ends with its connection or with us.
[[noreturn]] void serve(int fd, bool unasked) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  Record record{};
  std::memset(record.bytes, 0xa5, page);
  for (std::uint64_t next = 0;; ++next) {
    if (unasked) {
      record.number = next % load_pages;
    } else if (!read_all(fd, &record.number, sizeof record.number)) {
      break;
    }
    if (!write_all(fd, &record, sizeof record)) break;
  }
  ::_exit(0);
}

UniqueFd start_server(bool unasked) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return {};
  UniqueFd ours(pair[0]);
  const UniqueFd theirs(pair[1]);
  const pid_t child = ::fork();
  if (child < 0) return {};
  if (child == 0) {
    ours.reset();
    serve(theirs.get(), unasked);
  }
  return ours;
}

// Memory whose missing pages are asked for.
struct Area {
  explicit Area(std::size_t pages)
      : bytes(pages * page),
        start(static_cast<std::byte*>(
            ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    ::madvise(start, bytes, MADV_NOHUGEPAGE);
  }
  ~Area() { ::munmap(start, bytes); }
  Area(const Area&) = delete;
  Area& operator=(const Area&) = delete;
  std::size_t bytes;
  std::byte* start;
};

bool place(int userfault, const Area& area, const Record& record) {
  uffdio_copy copy{};
  copy.dst = reinterpret_cast<std::uintptr_t>(area.start) + record.number * page;
  copy.src = reinterpret_cast<std::uintptr_t>(record.bytes);
  copy.len = page;
  return ::ioctl(userfault, UFFDIO_COPY, &copy) == 0;
}

void read_faults(int userfault, const Area& area, int server, const std::atomic<bool>& ended) {
  while (!ended) {
    pollfd ready{userfault, POLLIN, 0};
    if (::poll(&ready, 1, 50) <= 0) continue;
    uffd_msg message;
    if (::read(userfault, &message, sizeof message) != sizeof message) continue;
    const std::uint64_t number = (message.arg.pagefault.address - reinterpret_cast<std::uintptr_t>(area.start)) / page;
    if (!write_all(server, &number, sizeof number)) return;
  }
}

void take_pages(int userfault, const Area& area, int server, bool again) {
  Record record;
  while (read_all(server, &record, sizeof record)) {
    // The load goes round for ever, through memory that it gives back.
    if (again && record.number == 0) ::madvise(area.start, area.bytes, MADV_DONTNEED);
    if (!place(userfault, area, record)) return;
  }
}

Result<void> run(std::uint64_t faults, bool load) {
  const UniqueFd server = start_server(false);
  const UniqueFd streamer = load ? start_server(true) : UniqueFd();
  if (!server || (load && !streamer)) return Error::from_errno("start the other process");
  const Area area(faults);
  const Area streamed(load_pages);
  MD_TRY(const ram::Userfaultfd userfault, ram::Userfaultfd::open(0, true));
  MD_CHECK(userfault.register_range({area.start, area.bytes}, UFFDIO_REGISTER_MODE_MISSING));
  MD_CHECK(userfault.register_range({streamed.start, streamed.bytes}, UFFDIO_REGISTER_MODE_MISSING));
  std::atomic<bool> ended{false};
  std::thread reader([&] { read_faults(userfault.fd(), area, server.get(), ended); });
  std::thread taker([&] { take_pages(userfault.fd(), area, server.get(), false); });
  std::thread load_taker([&] {
    if (load) take_pages(userfault.fd(), streamed, streamer.get(), true);
  });
  for (std::uint64_t i = 0; i < faults; ++i) {
    // Somewhere, each page once.
    const std::uint64_t number = (i * 7919) % faults;
    const auto begun = std::chrono::steady_clock::now();
    static_cast<void>(*static_cast<volatile std::byte*>(area.start + number * page));
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begun;
    fmt::print("us {:.1f}\n", took.count());
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  ended = true;
  ::shutdown(server.get(), SHUT_RDWR);
  if (load) ::shutdown(streamer.get(), SHUT_RDWR);
  for (std::thread* thread : {&reader, &taker, &load_taker}) thread->join();
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: fault-limit-bench FAULTS LOAD\n");
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  const auto done = run(std::strtoull(argv[1], nullptr, 10), std::atoi(argv[2]) != 0);
  if (!done) fmt::print(stderr, "{}\n", done.error().text());
  return done ? 0 : 1;
}
