// SPDX-License-Identifier: Apache-2.0
//
// Micro benchmarks of ram/: one part at a time, each beside a limit of the machine measured in the same run.
//
//   ram-bench transfer unix|tcp MIB   pages from a sink to a store in another process; beside it, the same bytes
//                                     through the same kind of socket with nothing done to them
//   ram-bench holes send|skip MIB     a machine of MIB of which 64 MiB were touched
//   ram-bench scan async|sync MIB     a clean dirty scan, and one with every page written
//   ram-bench store MIB               placing pages: pwritev against the engine view, fresh and populated
//   ram-bench zero MIB                the zero check beside a plain read of the memory
//
// Numbers are for one round; the caller repeats. CPU is source plus destination, user plus system.
#include "ram/dirty_log_factory.hpp"
#include "ram/page_scanner.hpp"
#include "ram/ram_section_reader.hpp"
#include "ram/run_pass.hpp"
#include "ram/sink_stream.hpp"
#include "ram/store_plain.hpp"
#include "ram/zero_page.hpp"
#include "transports/descriptor_channel.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string_view>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

[[noreturn]] void die(const Error& error) {
  fmt::print(stderr, "ram-bench: {}\n", error.text());
  std::_Exit(1);
}

template <class T>
T must(Result<T> result) {
  if (!result) die(result.error());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double cpu_seconds(int who) {
  rusage usage{};
  ::getrusage(who, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

RamMap map_of(std::size_t bytes) {
  RamMap map;
  must(map.add(must(RamBlock::create("pc.ram", bytes, page_size))));
  return map;
}

void fill(std::byte* memory, std::size_t bytes) {
  std::mt19937_64 random(1);
  for (std::size_t at = 0; at < bytes; at += page_size) {
    const std::uint64_t value = random() | 1;
    for (std::size_t word = 0; word < page_size; word += 64) std::memcpy(memory + at + word, &value, sizeof value);
  }
}

struct Pair {
  UniqueFd source, destination;
};

// MD_BENCH_SOCKET_KIB: the sockets' buffers, to look for a better size.
Pair with_buffers(Pair pair) {
  const char* const wanted = std::getenv("MD_BENCH_SOCKET_KIB");
  if (wanted == nullptr) return pair;
  const int size = std::atoi(wanted) * 1024;
  ::setsockopt(pair.source.get(), SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  ::setsockopt(pair.destination.get(), SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  return pair;
}

Pair connected(std::string_view kind) {
  int fds[2];
  if (kind == "unix") {
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) die(Error::from_errno("socketpair"));
    return with_buffers({UniqueFd(fds[0]), UniqueFd(fds[1])});
  }
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* const any = static_cast<sockaddr*>(static_cast<void*>(&address));
  if (::bind(listener.get(), any, size) != 0 || ::listen(listener.get(), 1) != 0) die(Error::from_errno("listen"));
  ::getsockname(listener.get(), any, &size);
  UniqueFd source(::socket(AF_INET, SOCK_STREAM, 0));
  if (::connect(source.get(), any, size) != 0) die(Error::from_errno("connect"));
  const int on = 1;
  ::setsockopt(source.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return with_buffers({std::move(source), UniqueFd(::accept(listener.get(), nullptr, nullptr))});
}

// What the child tells us, in memory both have: its CPU time, taken before it gives its memory back.
double* shared_number() {
  void* const page = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) die(Error::from_errno("mmap"));
  return static_cast<double*>(page);
}

// Runs `destination` in a child and `source` here; prints time, rate and CPU. `destination` calls what it is given
// when the last byte is placed: giving the memory back is not part of a migration.
using Done = std::function<void()>;
void measure(std::string_view label, std::string_view kind, double gib, const std::function<void(UniqueFd)>& source,
             const std::function<void(UniqueFd, const Done&)>& destination) {
  Pair pair = connected(kind);
  static double* const child_cpu = shared_number();
  static double* const child_done = child_cpu + 1;
  *child_done = 0;
  const double before = cpu_seconds(RUSAGE_SELF);
  const auto start = std::chrono::steady_clock::now();
  const pid_t child = ::fork();
  if (child == 0) {
    pair.source.reset();
    destination(std::move(pair.destination), [&] {
      *child_cpu = cpu_seconds(RUSAGE_SELF);
      *child_done = seconds_since(start);
    });
    std::_Exit(0);
  }
  pair.destination.reset();
  source(std::move(pair.source));
  const double own = cpu_seconds(RUSAGE_SELF) - before;
  int status = 0;
  ::waitpid(child, &status, 0);
  if (status != 0 || *child_done == 0) die(machine_error("the destination failed"));
  fmt::print("{:<28} {:7.1f} ms  {:6.2f} GiB/s  CPU/GiB: source {:.3f} s + destination {:.3f} s = {:.3f} s\n", label,
             *child_done * 1e3, gib / *child_done, own / gib, *child_cpu / gib, (own + *child_cpu) / gib);
}

void raw_send(UniqueFd fd, std::size_t bytes, std::size_t piece, const std::byte* from) {
  for (std::size_t done = 0; done < bytes;) {
    const ssize_t sent = ::send(fd.get(), from + done, std::min(piece, bytes - done), 0);
    if (sent <= 0) die(Error::from_errno("send"));
    done += static_cast<std::size_t>(sent);
  }
}

void raw_receive(UniqueFd fd, std::size_t piece, const Done& done) {
  std::vector<std::byte> buffer(piece);
  while (::recv(fd.get(), buffer.data(), buffer.size(), 0) > 0) {
  }
  done();
}

void send_machine(UniqueFd fd, RamMap& map, SinkStream::Options options) {
  const auto stop = must(StopSource::make());
  transports::DescriptorChannel channel(std::move(fd), transports::DescriptorKind::socket, *stop, "bench");
  transports::BufferedWriter writer(channel);
  SendCounters counters;
  SinkStream sink(map, writer, *stop, counters, options);
  auto scanner = must(PageScanner::of(map));
  must(scanner.begin_first_pass());
  must(run_whole_pass(scanner, sink, *stop));
  must(sink.end_body());
  must(sink.finish_pass());
}

void receive_into(UniqueFd fd, RamMap& map, std::size_t buffer, const Done& done) {
  const auto stop = must(StopSource::make());
  transports::DescriptorChannel channel(std::move(fd), transports::DescriptorKind::socket, *stop, "bench");
  transports::BufferedReader reader(channel, buffer);
  ReceiveCounters counters;
  const auto store = must(StorePlain::make(map));
  RamSectionReader body(reader, map, *store, counters);
  must(body.read_body());
  must(store->finish());
  done();
}

void receive_machine(UniqueFd fd, std::size_t bytes, std::size_t buffer, const Done& done) {
  RamMap map = map_of(bytes);
  receive_into(std::move(fd), map, buffer, done);
}

void bench_transfer(std::string_view kind, std::size_t bytes) {
  const double gib = static_cast<double>(bytes) / static_cast<double>(1024 * mib);
  RamMap map = map_of(bytes);
  fill(map.at(0).engine(), bytes);
  const std::byte* const memory = map.at(0).engine();
  // A warm destination: its memory is there, but the process that receives has not mapped it.
  RamMap warm = map_of(bytes);
  for (std::size_t at = 0; at < bytes; at += mib)
    if (::pwrite(warm.at(0).fd(), memory + at, mib, static_cast<off_t>(at)) < 0) die(Error::from_errno("pwrite"));
  for (int round = 0; round < 3; ++round) {
    for (const std::size_t piece : {512 * 1024, 2 * 1024 * 1024})
      measure(
          fmt::format("{} raw copy, {} KiB", kind, piece / 1024), kind, gib,
          [&](UniqueFd fd) { raw_send(std::move(fd), bytes, piece, memory); },
          [&](UniqueFd fd, const Done& done) { raw_receive(std::move(fd), 512 * 1024, done); });
    measure(
        fmt::format("{} precopy, warm", kind), kind, gib, [&](UniqueFd fd) { send_machine(std::move(fd), map, {}); },
        [&](UniqueFd fd, const Done& done) { receive_into(std::move(fd), warm, 512 * 1024, done); });
    for (const std::size_t buffer : {256, 512})
      measure(
          fmt::format("{} precopy, buffer {} KiB", kind, buffer), kind, gib,
          [&](UniqueFd fd) { send_machine(std::move(fd), map, {}); },
          [&](UniqueFd fd, const Done& done) { receive_machine(std::move(fd), bytes, buffer * 1024, done); });
  }
}

void bench_holes(std::string_view mode, std::size_t bytes) {
  const double gib = static_cast<double>(bytes) / static_cast<double>(1024 * mib);
  RamMap map = map_of(bytes);
  for (std::size_t piece = 0; piece < 64; ++piece) fill(map.at(0).engine() + piece * (bytes / 64), mib);
  for (int round = 0; round < 3; ++round)
    measure(
        fmt::format("holes, {}", mode), "unix", gib,
        [&](UniqueFd fd) { send_machine(std::move(fd), map, {mode == "skip"}); },
        [&](UniqueFd fd, const Done& done) { receive_machine(std::move(fd), bytes, 512 * 1024, done); });
}

void bench_scan(std::string_view kind, std::size_t bytes) {
  RamMap map = map_of(bytes);
  const Mapping view = must(Mapping::of_fd(map.at(0).fd(), bytes));
  fill(view.data(), bytes);
  LocalSpace space(std::vector<std::byte*>{view.data()});
  const auto log = must(make_dirty_log(map, space, kind == "sync" ? DirtyLogKind::wp_sync : DirtyLogKind::wp_async));
  DirtyBitmaps dirty(1, Bitmap(map.at(0).pages()));
  auto start = std::chrono::steady_clock::now();
  must(log->start());
  fmt::print("{}: start {:.2f} ms\n", log->kind(), seconds_since(start) * 1e3);
  for (int round = 0; round < 4; ++round) {
    start = std::chrono::steady_clock::now();
    const std::uint64_t found = must(log->sync(dirty));
    fmt::print("{}: clean scan of {} MiB: {:.2f} ms, {} pages\n", log->kind(), bytes / mib, seconds_since(start) * 1e3,
               found);
  }
  const std::size_t few = std::min(bytes, 256 * mib);
  start = std::chrono::steady_clock::now();
  for (std::size_t at = 0; at < few; at += page_size) view.data()[at] = std::byte{3};
  fmt::print("{}: first write to a protected page: {:.2f} us\n", log->kind(),
             seconds_since(start) * 1e6 / static_cast<double>(few / page_size));
  start = std::chrono::steady_clock::now();
  const std::uint64_t found = must(log->sync(dirty));
  fmt::print("{}: scan that finds {} pages: {:.2f} ms\n", log->kind(), found, seconds_since(start) * 1e3);
  start = std::chrono::steady_clock::now();
  log->stop();
  fmt::print("{}: stop {:.2f} ms\n", log->kind(), seconds_since(start) * 1e3);
}

void bench_store(std::size_t bytes) {
  const double gib = static_cast<double>(bytes) / static_cast<double>(1024 * mib);
  std::vector<std::byte> buffer(512 * 1024 + page_size);
  fill(buffer.data(), 512 * 1024);
  std::vector<iovec> pages;
  for (std::size_t at = 0; at < 512 * 1024; at += page_size) pages.push_back({buffer.data() + at, page_size});
  for (int round = 0; round < 3; ++round) {
    RamMap map = map_of(bytes);
    const auto store = must(StorePlain::make(map));
    for (const char* const what : {"pwritev, fresh", "pwritev, again", "engine view, first", "engine view, later"}) {
      const auto start = std::chrono::steady_clock::now();
      for (std::size_t at = 0; at < bytes; at += 512 * 1024)
        must(store->place(must(map.prove(0, at, 512 * 1024)), pages));
      fmt::print("store by {:<24} {:6.2f} GiB/s\n", what, gib / seconds_since(start));
    }
    RamMap again = map_of(bytes);
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t at = 0; at < bytes; at += 512 * 1024)
      std::memcpy(again.at(0).engine() + at, buffer.data(), 512 * 1024);
    fmt::print("store by {:<24} {:6.2f} GiB/s\n", "engine view, fresh", gib / seconds_since(start));
  }
}

void bench_zero(std::size_t bytes) {
  const double gib = static_cast<double>(bytes) / static_cast<double>(1024 * mib);
  RamMap map = map_of(bytes);
  std::memset(map.at(0).engine(), 0, bytes);
  for (int round = 0; round < 3; ++round) {
    auto start = std::chrono::steady_clock::now();
    std::size_t zero = 0;
    for (std::size_t at = 0; at < bytes; at += page_size) zero += is_zero_page(map.at(0).engine() + at);
    fmt::print("zero check ({}): {:.2f} GiB/s, {} pages\n", zero_page_method(), gib / seconds_since(start), zero);
    start = std::chrono::steady_clock::now();
    volatile const void* const found = std::memchr(map.at(0).engine(), 1, bytes);
    fmt::print("plain read (memchr): {:.2f} GiB/s{}\n", gib / seconds_since(start), found == nullptr ? "" : "!");
  }
}

int usage() {
  fmt::print(stderr,
             "usage: ram-bench transfer unix|tcp MIB | holes send|skip MIB | scan async|sync MIB | store MIB | "
             "zero MIB\n");
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  const std::string_view job = argc > 2 ? argv[1] : "";
  const std::size_t bytes = argc > 2 ? std::strtoull(argv[argc - 1], nullptr, 10) * mib : 0;
  if (bytes == 0) return usage();
  if (job == "transfer" && argc == 4)
    bench_transfer(argv[2], bytes);
  else if (job == "holes" && argc == 4)
    bench_holes(argv[2], bytes);
  else if (job == "scan" && argc == 4)
    bench_scan(argv[2], bytes);
  else if (job == "store")
    bench_store(bytes);
  else if (job == "zero")
    bench_zero(bytes);
  else
    return usage();
  return 0;
}
