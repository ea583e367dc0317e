// SPDX-License-Identifier: Apache-2.0
//
// A daemon that a test scripts, packet by packet, over a real socket. Every step waits for the other side's, bounded
// against hangs only.
#pragma once

#include "guest/migrationd_guest.h"
#include "guest/protocol.hpp"
#include "guest/wire.hpp"
#include "tests/unit/catch.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <future>
#include <string>

namespace migrationd::guest::test {

inline constexpr std::chrono::seconds hang_bound{30};

template <class Body>
Bytes bytes_of(const Body& body) {
  ByteWriter out;
  encode(body, out);
  return std::move(out).take();
}

// What a guest told before READY.
struct Registration {
  Hello hello;
  std::vector<AddBlock> blocks;
  std::vector<std::vector<UniqueFd>> memory;  // per block: memfd, bitmap
  std::vector<AddDevice> devices;
  Ready ready;
  std::size_t packets = 0;
};

class FakeDaemon {
 public:
  FakeDaemon() {
    static std::atomic<int> number = 0;
    path_ = fmt::format("/tmp/migrationd-fake-{}-{}", ::getpid(), ++number);
    listener_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.c_str(), path_.size());
    REQUIRE(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(listener_.get(), 4) == 0);
  }
  ~FakeDaemon() { ::unlink(path_.c_str()); }
  FakeDaemon(const FakeDaemon&) = delete;
  FakeDaemon& operator=(const FakeDaemon&) = delete;

  const char* path() const { return path_.c_str(); }

  void accept() {
    socket_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    REQUIRE(socket_);
    serial_ = 0;
  }
  // As if it had been killed.
  void die() { socket_.reset(); }
  int socket() const { return socket_.get(); }

  // The guest's next packet; none: it hung up.
  std::optional<Packet> receive() {
    auto packet = receive_packet(socket_.get(), hang_bound);
    if (!packet) return std::nullopt;
    REQUIRE(packet->has_value());
    return std::move(**packet);
  }
  void send_raw(ByteView bytes, std::span<const int> fds = {}) {
    REQUIRE(send_packet(socket_.get(), bytes, fds).has_value());
  }
  template <class Body>
  void reply(const Packet& to, const Body& body, std::span<const int> fds = {}) {
    send_raw(packet(static_cast<std::uint16_t>(to.header.type | reply_bit), to.header.serial, body), fds);
  }
  void refuse(const Packet& to, const std::string& why) { send_raw(packet(refusal, to.header.serial, Refusal{why})); }
  template <class Body>
  void notify(Type type, const Body& body) {
    send_raw(packet(static_cast<std::uint16_t>(type), 0, body));
  }
  template <class Body>
  void ask(Type type, const Body& body, std::span<const int> fds = {}) {
    send_raw(packet(static_cast<std::uint16_t>(type), ++serial_, body), fds);
  }
  // Asks, and takes the answer; none: the guest hung up.
  template <class Body>
  std::optional<Packet> call(Type type, const Body& body, std::span<const int> fds = {}) {
    ask(type, body, fds);
    auto answer = receive();
    if (answer) REQUIRE(answer->header.serial == serial_);
    return answer;
  }
  template <class Body>
  void must(Type type, const Body& body) {
    const auto answer = call(type, body);
    REQUIRE(answer.has_value());
    INFO(sentence_of(*answer));
    REQUIRE(answer->header.type == (static_cast<std::uint16_t>(type) | reply_bit));
  }
  // The sentence the guest refuses with; empty: it did not.
  template <class Body>
  std::string why_not(Type type, const Body& body, std::span<const int> fds = {}) {
    const auto answer = call(type, body, fds);
    REQUIRE(answer.has_value());
    return sentence_of(*answer);
  }
  static std::string sentence_of(const Packet& packet) {
    if (packet.header.type != refusal) return {};
    auto body = decode<Refusal>(packet.body);
    REQUIRE(body.has_value());
    return body->why;
  }

  // Takes what a guest tells until READY, `most` packets of it at most; then dies.
  Registration take_registration(std::size_t most = ~std::size_t{0}) {
    Registration out;
    accept();
    while (out.packets < most) {
      auto next = receive();
      REQUIRE(next.has_value());
      ++out.packets;
      if (take_one(*next, out)) return out;
    }
    die();
    return out;
  }

 private:
  // True behind READY.
  bool take_one(Packet& next, Registration& out) {
    const auto type = static_cast<Type>(next.header.type);
    if (type == Type::hello) {
      out.hello = *decode<Hello>(next.body);
      reply(next, Welcome{protocol_version, "fake daemon", 5000});
      return false;
    }
    if (type == Type::add_block) {
      out.blocks.push_back(*decode<AddBlock>(next.body));
      out.memory.push_back(std::move(next.fds));
    } else if (type == Type::add_device) {
      out.devices.push_back(*decode<AddDevice>(next.body));
    } else {
      REQUIRE(type == Type::ready);
      out.ready = *decode<Ready>(next.body);
    }
    reply(next, Empty{});
    return type == Type::ready;
  }

  std::string path_;
  UniqueFd listener_;
  UniqueFd socket_;
  std::uint32_t serial_ = 0;
};

// Something another thread says once, and the test waits for.
class Signal {
 public:
  void set() { promise_.set_value(); }
  bool wait() { return future_.wait_for(hang_bound) == std::future_status::ready; }

 private:
  std::promise<void> promise_;
  std::future<void> future_ = promise_.get_future();
};

struct FreeGuest {
  void operator()(md_guest* guest) const noexcept { md_guest_free(guest); }
};
using GuestHandle = std::unique_ptr<md_guest, FreeGuest>;

// Attaches while the daemon takes the registration.
inline Registration attach(md_guest* guest, FakeDaemon& daemon, unsigned flags) {
  auto attached = std::async(std::launch::async, [&] {
    const int status = md_guest_attach(guest, daemon.path(), flags);
    return std::pair(status, std::string(md_guest_error(guest)));
  });
  Registration out = daemon.take_registration();
  const auto [status, why] = attached.get();
  INFO(why);
  REQUIRE(status == 0);
  return out;
}

// Answers the guest's DETACH, so that its end does not wait.
inline int detach(md_guest* guest, FakeDaemon& daemon) {
  auto detached = std::async(std::launch::async, [&] { return md_guest_detach(guest); });
  const auto asked = daemon.receive();
  REQUIRE(asked.has_value());
  REQUIRE(asked->header.type == static_cast<std::uint16_t>(Type::detach));
  daemon.reply(*asked, Empty{});
  return detached.get();
}

}  // namespace migrationd::guest::test
