// SPDX-License-Identifier: Apache-2.0
//
// cache-load: puts load on a cache and proves that no acknowledged write is lost and no value is torn or stale.
//
//     cache-load --seconds 5 [--connections 8] [--keys 64] [--until FILE] ADDRESS [ADDRESS...]
//
// Each connection has keys of its own and a sequence number per key. The value of number n is a text that only n and
// the key can make (its length differs with n, too). A key's number in the cache must be at least the last acknowledged
// one, and at most the last one sent: a write whose answer never came may have happened or not. Every third request
// reads.
//
// A client that is told MOVED goes there; one that is hung up on tries all addresses in turn. With --until it goes on
// until that file exists. At the end every key is read once more.
#include "guest/examples/cache/net.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  unsigned seconds = 5;
  unsigned connections = 8;
  unsigned keys = 64;
  std::string until;
  std::vector<std::string> addresses;
};

struct Totals {
  std::uint64_t requests = 0;
  std::uint64_t writes = 0;  // acknowledged
  std::uint64_t moves = 0;   // connections that went elsewhere
  std::uint64_t faults = 0;
  Clock::duration longest_gap{};
};

std::string value_of(const std::string& key, std::uint64_t number) {
  std::string out = std::to_string(number) + ":" + key + ":";
  const std::size_t length = out.size() + (number * 37) % 900;
  for (std::uint64_t seed = number * 0x9e3779b97f4a7c15U; out.size() < length; seed = seed * 6364136223846793005U + 1) {
    out += static_cast<char>('a' + (seed >> 33) % 26);
  }
  return out;
}

class Worker {
 public:
  Worker(const Options& options, unsigned index) : options_(options), index_(index) {
    for (unsigned i = 0; i < options.keys; ++i)
      keys_.push_back({"c" + std::to_string(index) + "-k" + std::to_string(i), 0, 0});
  }
  ~Worker() { hang_up(); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void run(const std::atomic<bool>& end) {
    last_answer_ = Clock::now();
    for (std::uint64_t step = 0; !end; ++step) {
      Key& key = keys_[(step * 7) % keys_.size()];
      if (step % 3 == 2) {
        read(key);
      } else {
        write(key);
      }
    }
    for (Key& key : keys_) {
      while (!read(key)) {
      }
    }
  }
  const Totals& totals() const { return totals_; }

 private:
  struct Key {
    std::string name;
    std::uint64_t sent;
    std::uint64_t acknowledged;
  };

  void write(Key& key) {
    const std::uint64_t number = ++key.sent;
    std::string line;
    if (!ask("SET " + key.name + " " + value_of(key.name, number) + "\n", line)) return;
    if (line != "OK") return fault(key, "SET was answered '" + line + "'");
    key.acknowledged = number;
    ++totals_.writes;
  }

  // False: no answer came.
  bool read(Key& key) {
    std::string line;
    if (!ask("GET " + key.name + "\n", line)) return false;
    if (line == "NONE") {
      if (key.acknowledged > 0) fault(key, "is gone");
      return true;
    }
    if (line.rfind("VALUE ", 0) != 0) {
      fault(key, "GET was answered '" + line + "'");
      return true;
    }
    const std::uint64_t number = std::strtoull(line.c_str() + 6, nullptr, 10);
    if (line.substr(6) != value_of(key.name, number)) {
      fault(key, "is torn: '" + line + "'");
    } else if (number < key.acknowledged) {
      fault(key, "is stale: " + std::to_string(number));
    } else if (number > key.sent) {
      fault(key, "was never written: " + std::to_string(number));
    } else {
      key.acknowledged = number;
    }
    return true;
  }

  void fault(const Key& key, const std::string& what) {
    static std::mutex printing;
    const std::lock_guard lock(printing);
    std::printf("fault: key %s (acknowledged %llu, sent %llu) %.200s\n", key.name.c_str(),
                static_cast<unsigned long long>(key.acknowledged), static_cast<unsigned long long>(key.sent),
                what.c_str());
    ++totals_.faults;
  }

  // Sends and takes the answer's line. False: the connection broke, and a new one is there.
  bool ask(const std::string& request, std::string& line) {
    if (fd_ < 0) connect();
    if (send_all(request) && receive_line(line)) {
      if (line.rfind("MOVED ", 0) != 0) {
        const auto now = Clock::now();
        totals_.longest_gap = std::max(totals_.longest_gap, now - last_answer_);
        last_answer_ = now;
        ++totals_.requests;
        return true;
      }
      next_ = line.substr(6);
    }
    hang_up();
    connect();
    return false;
  }

  void connect() {
    if (!next_.empty()) ++totals_.moves;
    for (std::size_t turn = 0; fd_ < 0; ++turn) {
      // The place that was named first; it may take a moment until it listens.
      fd_ = cache::connected_socket(next_.empty() ? options_.addresses[turn % options_.addresses.size()] : next_);
      if (fd_ >= 0) break;
      if (turn > 20000) {
        std::printf("fault: connection %u finds no server\n", index_);
        std::exit(1);
      }
      if (turn > 100) next_.clear();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    next_.clear();
  }

  bool send_all(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }

  bool receive_line(std::string& line) {
    std::size_t end = 0;
    while ((end = buffer_.find('\n')) == std::string::npos) {
      char bytes[8192];
      const ssize_t count = ::recv(fd_, bytes, sizeof bytes, 0);
      if (count <= 0) return false;
      buffer_.append(bytes, static_cast<std::size_t>(count));
    }
    line = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    return true;
  }

  void hang_up() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
    buffer_.clear();
  }

  const Options& options_;
  const unsigned index_;
  std::vector<Key> keys_;
  Totals totals_;
  Clock::time_point last_answer_;
  std::string next_;
  std::string buffer_;
  int fd_ = -1;
};

bool parse(int argc, char** argv, Options& out) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) != 0) {
      out.addresses.push_back(name);
      continue;
    }
    if (++i == argc) return false;
    const auto number = static_cast<unsigned>(std::atoi(argv[i]));
    if (name == "--seconds") {
      out.seconds = number;
    } else if (name == "--connections") {
      out.connections = number;
    } else if (name == "--keys") {
      out.keys = number;
    } else if (name == "--until") {
      out.until = argv[i];
    } else {
      return false;
    }
  }
  return !out.addresses.empty() && out.connections > 0 && out.keys > 0;
}

void wait_for_the_end(const Options& options) {
  if (options.until.empty()) return std::this_thread::sleep_for(std::chrono::seconds(options.seconds));
  while (::access(options.until.c_str(), F_OK) != 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr, "usage: cache-load [--seconds N | --until FILE] [--connections N] [--keys N] ADDRESS...\n");
    return 2;
  }
  std::atomic<bool> end = false;
  std::vector<std::unique_ptr<Worker>> workers;
  for (unsigned i = 0; i < options.connections; ++i) workers.push_back(std::make_unique<Worker>(options, i));
  const auto began = Clock::now();
  std::vector<std::thread> threads;
  for (const auto& worker : workers) threads.emplace_back([&end, one = worker.get()] { one->run(end); });
  wait_for_the_end(options);
  end = true;
  for (std::thread& thread : threads) thread.join();
  Totals all;
  for (const auto& worker : workers) {
    all.requests += worker->totals().requests;
    all.writes += worker->totals().writes;
    all.moves += worker->totals().moves;
    all.faults += worker->totals().faults;
    all.longest_gap = std::max(all.longest_gap, worker->totals().longest_gap);
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
  std::printf(
      "requests %llu, requests/s %.0f, acknowledged writes %llu, moved connections %llu, longest gap %.1f ms, faults "
      "%llu\n",
      static_cast<unsigned long long>(all.requests), static_cast<double>(all.requests) / seconds,
      static_cast<unsigned long long>(all.writes), static_cast<unsigned long long>(all.moves),
      std::chrono::duration<double, std::milli>(all.longest_gap).count(), static_cast<unsigned long long>(all.faults));
  return all.faults == 0 ? 0 : 1;
}
