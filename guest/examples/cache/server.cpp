// SPDX-License-Identifier: Apache-2.0
//
// cache: an in-memory key-value server that keeps serving while it is migrated.
//
//     cache --listen unix:/tmp/a.sock --guest /run/migrationd/NAME/guest.sock [--size 64M] [--moved-to ADDRESS]
//     [--empty]
//
// Lines over a stream socket: `SET key value`, `GET key`, `DEL key`, `PING`; answers `OK`, `VALUE value`, `NONE`,
// `PONG`, `ERROR why`. All data lives in one block of guest memory (store.hpp). A write is acknowledged when it is in
// memory.
//
// How it moves without losing one: requests are executed by one thread, a batch at a time under `gate`. stop() takes
// the gate and takes `running` away, so when it returns nothing writes; requests that come then are kept as bytes. If
// the migration fails, start() gives `running` back and they are executed. If the machine left, each client is told
// `MOVED ADDRESS` instead and is hung up on: what was not acknowledged was not executed. The far end listens only from
// start() on, so nobody is served there before memory and state have arrived.
//
// A daemon that dies takes nothing along: the server goes on and attaches again.
#include "guest/examples/cache/net.hpp"
#include "guest/examples/cache/store.hpp"
#include "guest/migrationd_guest.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t most_line = 64 << 10;
constexpr std::size_t most_output = 1 << 20;  // a client that does not read its answers is not read from
constexpr std::size_t most_clients = 1000;

struct Options {
  std::string listen;
  std::string guest;
  std::string moved_to;
  std::uint64_t size = 64 << 20;
  bool empty = false;
};

// What is not memory: counters, and how often the server has moved.
struct Meta {
  std::uint64_t sets = 0;
  std::uint64_t gets = 0;
  std::uint64_t deletes = 0;
  std::uint32_t moves = 0;
};
int count_move(void* meta, std::uint32_t /*version*/) {
  ++static_cast<Meta*>(meta)->moves;
  return 0;
}
const md_field meta_fields[] = {MD_U64(Meta, sets), MD_U64(Meta, gets), MD_U64(Meta, deletes), MD_U32(Meta, moves),
                                MD_END};
const md_device meta_device = [] {
  md_device out{};
  out.name = "cache";
  out.version = 1;
  out.fields = meta_fields;
  out.post_load = &count_move;
  out.state_size = sizeof(Meta);
  return out;
}();

struct Client {
  int fd = -1;
  std::string in;
  std::string out;
  bool ends = false;  // when `out` is written
};

class Server {
 public:
  explicit Server(Options options) : options_(std::move(options)) {}
  int run();

 private:
  bool prepare();
  bool attach(unsigned state);
  void attach_again();
  bool runs();
  void wake() const { static_cast<void>(::eventfd_write(wake_, 1)); }

  static int on_stop(void* user);
  static int on_start(void* user);
  static void on_event(void* user, md_event event, const char* why);

  void serve();
  void accept_clients();
  void read_from(Client& client);
  void execute(Client& client);
  std::string answer(std::string_view line);
  void write_to(Client& client);

  const Options options_;
  md_guest* guest_ = nullptr;
  std::byte* memory_ = nullptr;
  cache::Store store_;
  Meta meta_;
  int listener_ = -1;
  int wake_ = -1;
  std::vector<Client> clients_;
  bool is_listening_ = false;

  std::mutex gate_;  // store_, meta_ and running_: whoever has it may write guest memory
  bool running_ = false;
  std::atomic<bool> left_ = false;
  std::condition_variable gone_changed_;
  std::mutex gone_mutex_;
  bool gone_ = false;
  bool ends_ = false;
};

int Server::on_stop(void* user) {
  Server& self = *static_cast<Server*>(user);
  const std::lock_guard lock(self.gate_);
  self.running_ = false;
  return 0;
}

int Server::on_start(void* user) {
  Server& self = *static_cast<Server*>(user);
  {
    const std::lock_guard lock(self.gate_);
    if (!self.store_.open(self.memory_, self.options_.size))
      return md_guest_refuse(self.guest_, "memory holds no store");
    self.running_ = true;
  }
  self.wake();
  return 0;
}

void Server::on_event(void* user, md_event event, const char* why) {
  Server& self = *static_cast<Server*>(user);
  if (event == MD_LEFT) self.left_ = true;
  if (event == MD_DAEMON_GONE) {
    const std::lock_guard lock(self.gone_mutex_);
    self.gone_ = true;
    self.gone_changed_.notify_all();
  }
  constexpr const char* words[] = {"", "left", "stays", "arrived", "daemon gone"};
  std::printf("%s %s\n", words[event], why);
  std::fflush(stdout);
  self.wake();
}

bool Server::prepare() {
  md_callbacks callbacks{};
  callbacks.size = sizeof callbacks;
  callbacks.stop = &on_stop;
  callbacks.start = &on_start;
  callbacks.event = &on_event;
  guest_ = md_guest_new("cache", &callbacks, this);
  if (guest_ == nullptr) return false;
  memory_ = static_cast<std::byte*>(md_guest_new_block(guest_, "cache", options_.size, 4096, MD_TRACK_WRITE_PROTECT));
  if (memory_ == nullptr) return false;
  if (md_guest_add_device(guest_, &meta_device, &meta_, nullptr, 0) != 0) return false;
  if (options_.empty) return true;
  running_ = store_.open(memory_, options_.size);
  return running_;
}

bool Server::attach(unsigned state) {
  if (md_guest_attach(guest_, options_.guest.c_str(), state) == 0) return true;
  std::fprintf(stderr, "cache: %s\n", md_guest_error(guest_));
  return false;
}

// Only while it runs here: a server that was stopped when its daemon died may run elsewhere by now.
void Server::attach_again() {
  std::unique_lock lock(gone_mutex_);
  for (;;) {
    gone_changed_.wait(lock, [&] { return gone_ || ends_; });
    gone_changed_.wait_for(lock, std::chrono::milliseconds(200), [&] { return ends_; });
    if (ends_) return;
    gone_ = false;  // before: the next daemon may die while it is told
    lock.unlock();
    const bool done = !runs() || md_guest_attach(guest_, options_.guest.c_str(), MD_RUNNING) == 0;
    lock.lock();
    if (!done) {
      gone_ = true;
      continue;
    }
    std::printf("%s\n", md_guest_is_attached(guest_) != 0 ? "attached again" : "at rest");
    std::fflush(stdout);
  }
}

bool Server::runs() {
  const std::lock_guard lock(gate_);
  return running_;
}

std::string Server::answer(std::string_view line) {
  const auto word = [&] {
    const std::size_t end = std::min(line.find(' '), line.size());
    const std::string_view out = line.substr(0, end);
    line.remove_prefix(std::min(end + 1, line.size()));
    return out;
  };
  const std::string_view command = word();
  if (command == "PING") return "PONG\n";
  if (command == "STAT") {
    return "VALUE keys=" + std::to_string(store_.size()) + " sets=" + std::to_string(meta_.sets) +
           " moves=" + std::to_string(meta_.moves) + "\n";
  }
  const std::string_view key = word();
  if (key.empty() || key.size() > cache::most_key_bytes) return "ERROR no key, or too long\n";
  if (command == "SET") {
    ++meta_.sets;
    return store_.set(key, line) ? "OK\n" : "ERROR no room\n";
  }
  if (command == "GET") {
    ++meta_.gets;
    const auto value = store_.get(key);
    return value ? "VALUE " + *value + "\n" : "NONE\n";
  }
  if (command == "DEL") {
    ++meta_.deletes;
    return store_.erase(key) ? "OK\n" : "NONE\n";
  }
  return "ERROR no such command\n";
}

void Server::execute(Client& client) {
  if (left_) {
    client.out += options_.moved_to.empty() ? "" : "MOVED " + options_.moved_to + "\n";
    client.in.clear();
    client.ends = true;
    return;
  }
  const std::lock_guard lock(gate_);
  std::size_t done = 0;
  while (running_ && client.out.size() < most_output) {
    const std::size_t end = client.in.find('\n', done);
    if (end == std::string::npos) break;
    client.out += answer(std::string_view(client.in).substr(done, end - done));
    done = end + 1;
  }
  client.in.erase(0, done);
  if (client.in.size() > most_line && client.in.find('\n') == std::string::npos) client.ends = true;
}

void Server::read_from(Client& client) {
  char bytes[16 << 10];
  const ssize_t count = ::recv(client.fd, bytes, sizeof bytes, MSG_DONTWAIT);
  if (count > 0) {
    client.in.append(bytes, static_cast<std::size_t>(count));
  } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
    client.out.clear();
    client.ends = true;
  }
}

void Server::write_to(Client& client) {
  if (client.out.empty()) return;
  const ssize_t count = ::send(client.fd, client.out.data(), client.out.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (count > 0) client.out.erase(0, static_cast<std::size_t>(count));
  if (count < 0 && errno != EAGAIN && errno != EINTR) {
    client.out.clear();
    client.ends = true;
  }
}

void Server::accept_clients() {
  for (;;) {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    if (clients_.size() >= most_clients) {
      ::close(fd);
    } else {
      clients_.push_back(Client{fd, {}, {}, false});
    }
  }
}

void Server::serve() {
  for (;;) {
    std::vector<pollfd> waits{{wake_, POLLIN, 0}, {is_listening_ ? listener_ : -1, POLLIN, 0}};
    for (const Client& client : clients_) {
      const bool is_full = client.in.size() > most_line || client.out.size() >= most_output;
      const short events = static_cast<short>((is_full ? 0 : POLLIN) | (client.out.empty() ? 0 : POLLOUT));
      waits.push_back({client.fd, events, 0});
    }
    if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR) return;
    eventfd_t count = 0;
    if (waits[0].revents != 0) static_cast<void>(::eventfd_read(wake_, &count));
    if (!is_listening_) {
      const std::lock_guard lock(gate_);
      is_listening_ = running_ && ::listen(listener_, 128) == 0;
    }
    for (std::size_t i = 0; i < clients_.size(); ++i) {
      Client& client = clients_[i];
      if ((waits[i + 2].revents & (POLLIN | POLLHUP | POLLERR)) != 0) read_from(client);
      // Kept ones too: what woke us may be start() or the machine's leaving.
      if (!client.ends) execute(client);
      write_to(client);
      if (client.ends && client.out.empty()) {
        ::close(client.fd);
        client.fd = -1;
      }
    }
    std::erase_if(clients_, [](const Client& client) { return client.fd < 0; });
    if (is_listening_) accept_clients();
  }
}

int Server::run() {
  wake_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  listener_ = cache::bound_socket(options_.listen);
  if (listener_ < 0 || wake_ < 0) {
    std::fprintf(stderr, "cache: listen on '%s': %s\n", options_.listen.c_str(), std::strerror(errno));
    return 1;
  }
  if (!prepare()) {
    std::fprintf(stderr, "cache: %s\n", md_guest_error(guest_));
    return 1;
  }
  if (!attach(options_.empty ? MD_EMPTY : MD_RUNNING)) return 1;
  std::printf("attached\n");
  std::fflush(stdout);
  std::thread attacher([this] { attach_again(); });
  wake();
  serve();
  {
    const std::lock_guard lock(gone_mutex_);
    ends_ = true;
    gone_changed_.notify_all();
  }
  attacher.join();
  md_guest_free(guest_);
  return 1;
}

bool parse_size(std::string_view text, std::uint64_t& out) {
  unsigned shift = 0;
  if (!text.empty() && text.back() == 'M') shift = 20;
  if (!text.empty() && text.back() == 'G') shift = 30;
  if (shift != 0) text.remove_suffix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc{} || end != text.data() + text.size() || out > (std::uint64_t{1} << (44 - shift)))
    return false;
  out <<= shift;
  return true;
}

bool parse(int argc, char** argv, Options& out) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (name == "--empty") {
      out.empty = true;
      continue;
    }
    if (++i == argc) return false;
    if (name == "--listen") {
      out.listen = argv[i];
    } else if (name == "--guest") {
      out.guest = argv[i];
    } else if (name == "--moved-to") {
      out.moved_to = argv[i];
    } else if (name != "--size" || !parse_size(argv[i], out.size)) {
      return false;
    }
  }
  return !out.listen.empty() && !out.guest.empty();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(
        stderr, "usage: cache --listen unix:PATH|HOST:PORT --guest PATH [--size 64M] [--moved-to ADDRESS] [--empty]\n");
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  return Server(std::move(options)).run();
}
