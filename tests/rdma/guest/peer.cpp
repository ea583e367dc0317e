// SPDX-License-Identifier: Apache-2.0
//
// rdma-peer: a peer that says what it is told to, right or wrong (docs/spec/rdma.md, section 4).
//
//   rdma-peer connect|listen HOST PORT PRIVATE-DATA-IN-HEX STEP...
//
//   send TYPE REPEAT HEX   a message with a right header
//   raw HEX                a message of exactly these bytes
//   register OFFSET CHUNKS            REGISTER_REQUEST for the first block that RAM_BLOCKS_RESULT told of (hex)
//   answer HEX             REGISTER_RESULT: this record as often as the last message had records
//   answer-all HEX         the same to every REGISTER_REQUEST, until the other side ends the connection
//   compress VALUE OFFSET LENGTH      COMPRESS in that block (hex)
//   big TYPE LENGTH SIZE   a message of SIZE bytes whose header says LENGTH
//   ready                  READY: the other side may send
//   take TYPE              the next message of the other side is of that type
//   until TYPE             as a receiving side: READY and the next message, until one is of that type
//   gone                   the other side ends the connection
//   refused                (first step) the connection is refused
//   sleep SECONDS
//
// "none" is no bytes. Every step waits 20 s at most, then the program fails and says at which step. What comes is told
// on standard output.
#include "transports/rdma_link.hpp"

#include <fmt/format.h>
#include <poll.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <span>
#include <thread>

namespace {

using namespace migrationd;
using namespace migrationd::transports;
using namespace std::chrono_literals;

constexpr auto bound = 20s;
constexpr std::size_t message_bytes = 524288;
constexpr std::size_t slots = 4;
constexpr std::uint32_t type_ready = 2;
constexpr std::uint32_t type_blocks = 5;
constexpr std::uint32_t type_compress = 6;
constexpr std::uint32_t type_register = 7;
constexpr std::uint32_t type_result = 8;

std::string current_step = "start";

[[noreturn]] void fail(const std::string& text) {
  std::fprintf(stderr, "rdma-peer, at '%s': %s\n", current_step.c_str(), text.c_str());
  std::exit(1);
}

template <class T>
T must(Result<T> result) {
  if (!result.has_value()) fail(result.error().text());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

std::uint64_t number(std::string_view text, int base = 10) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) fail(fmt::format("'{}' is no number", text));
  return value;
}

Bytes from_hex(std::string_view text) {
  if (text == "none") return {};
  if (text.size() % 2 != 0) fail("hex digits are missing");
  Bytes out;
  for (std::size_t i = 0; i < text.size(); i += 2) out.push_back(static_cast<std::byte>(number(text.substr(i, 2), 16)));
  return out;
}

Bytes header(std::uint32_t length, std::uint32_t type, std::uint32_t repeat) {
  Bytes out(16);
  store_be(out.data(), length);
  store_be(out.data() + 4, type);
  store_be(out.data() + 8, repeat);
  return out;
}

class Peer {
 public:
  Peer(bool connects, const InetAddress& place, Bytes private_data) : private_data_(std::move(private_data)) {
    if (connects) {
      link_ = must(fabric_->open(place, *stop_));
    } else {
      const auto listener = must(fabric_->listen(place));
      std::puts("listening");
      std::fflush(stdout);
      while (link_ == nullptr) {
        pollfd polled{listener->fd(), POLLIN, 0};
        if (::poll(&polled, 1, 20000) == 0) fail("nobody connected");
        link_ = must(listener->accept_ready());
      }
      const ByteView told = link_->peer_private_data();
      fmt::print("private data {:x} {:x}\n", load_be<std::uint32_t>(told.data()),
                 load_be<std::uint32_t>(told.data() + 4));
    }
    memory_.resize(message_bytes * (slots + 1));
    region_ = must(link_->domain()->register_memory(memory_, RdmaAccess::write_local));
    for (std::size_t slot = 0; slot < slots; ++slot) post(slot);
  }

  Result<void> establish() { return link_->establish(private_data_, *stop_, bound); }

  void send(const Bytes& head, ByteView body) {
    must(post_message(head, body));
    while (!sent_) look();
    sent_ = false;
  }

  void answer(const Bytes& record) {
    const Bytes body = answers(record);
    send(header(static_cast<std::uint32_t>(body.size()), type_result, records_), body);
  }

  // How many requests come before the other side has seen enough is its own affair.
  void answer_all(const Bytes& record) {
    while (send_unless_gone(header(0, type_ready, 1), {})) {
      while (messages_.empty()) {
        if (!look_unless_gone()) return;
      }
      const std::uint32_t type = messages_.front();
      messages_.pop_front();
      if (type != type_register) continue;
      const Bytes body = answers(record);
      if (!send_unless_gone(header(static_cast<std::uint32_t>(body.size()), type_result, records_), body)) return;
    }
  }

  std::uint64_t block_offset() const noexcept { return block_offset_; }

  std::uint32_t take() {
    while (messages_.empty()) look();
    const std::uint32_t type = messages_.front();
    messages_.pop_front();
    return type;
  }

  // A failed request of ours is as good a sign as any.
  void gone() {
    const auto deadline = std::chrono::steady_clock::now() + bound;
    while (std::chrono::steady_clock::now() < deadline) {
      const RdmaWake wake = must(link_->wait(*stop_, 1000ms));
      if (wake == RdmaWake::disconnected) return;
      std::array<RdmaCompletion, slots> done;
      const auto found = link_->poll(done);
      if (!found.has_value()) return;
      for (const RdmaCompletion& one : *found) keep(one);
    }
    fail("the other side does not go");
  }

 private:
  void post(std::size_t slot) {
    must(link_->post_receive({memory_.data() + slot * message_bytes, message_bytes, region_->local_key()}, slot));
  }

  Result<void> post_message(const Bytes& head, ByteView body) {
    std::byte* from = memory_.data() + message_bytes * slots;
    std::copy(head.begin(), head.end(), from);
    std::copy(body.begin(), body.end(), from + head.size());
    const auto size = static_cast<std::uint32_t>(head.size() + body.size());
    return link_->post_send({from, size, region_->local_key()}, slots);
  }

  Bytes answers(const Bytes& record) const {
    Bytes body;
    for (std::uint32_t i = 0; i < records_; ++i) body.insert(body.end(), record.begin(), record.end());
    return body;
  }

  // False: the connection has ended. A failed request of ours is as good a sign as any.
  bool look_unless_gone() {
    const auto wake = link_->wait(*stop_, bound);
    if (!wake.has_value() || *wake == RdmaWake::disconnected) return false;
    if (*wake == RdmaWake::timed_out) fail("nothing comes");
    std::array<RdmaCompletion, slots> done;
    const auto found = link_->poll(done);
    if (!found.has_value()) return false;
    for (const RdmaCompletion& one : *found) keep(one);
    return true;
  }

  bool send_unless_gone(const Bytes& head, ByteView body) {
    if (!post_message(head, body).has_value()) return false;
    while (!sent_) {
      if (!look_unless_gone()) return false;
    }
    sent_ = false;
    return true;
  }

  void look() {
    const RdmaWake wake = must(link_->wait(*stop_, bound));
    if (wake == RdmaWake::timed_out) fail("nothing comes");
    if (wake == RdmaWake::disconnected) fail("the other side is gone");
    std::array<RdmaCompletion, slots> done;
    for (const RdmaCompletion& one : must(link_->poll(done))) keep(one);
  }

  void keep(const RdmaCompletion& one) {
    if (one.request != RdmaRequest::receive) {
      sent_ = true;
      return;
    }
    const std::byte* message = memory_.data() + one.id * message_bytes;
    const auto type = load_be<std::uint32_t>(message + 4);
    fmt::print("got type {} length {} repeat {} in {} bytes:", type, load_be<std::uint32_t>(message),
               load_be<std::uint32_t>(message + 8), one.length);
    for (std::size_t i = 16; i < std::min<std::size_t>(one.length, 16 + 96); ++i)
      fmt::print("{}{:02x}", i % 8 == 0 ? " " : "", static_cast<unsigned>(message[i]));
    fmt::print("\n");
    std::fflush(stdout);
    if (type == type_blocks && one.length >= 32) block_offset_ = load_be<std::uint64_t>(message + 24);
    records_ = std::min(load_be<std::uint32_t>(message + 8), 4096U);
    messages_.push_back(type);
    post(one.id);
  }

  Bytes private_data_;
  std::unique_ptr<StopSource> stop_ = must(StopSource::make());
  std::unique_ptr<RdmaFabric> fabric_ = must(make_rdma_fabric());
  std::unique_ptr<RdmaLink> link_;
  std::vector<std::byte> memory_;
  std::unique_ptr<RdmaRegion> region_;
  std::deque<std::uint32_t> messages_;
  std::uint64_t block_offset_ = 0;
  std::uint32_t records_ = 0;
  bool sent_ = false;
};

class Script {
 public:
  explicit Script(std::span<char*> words) : words_(words) {}

  bool done() const { return words_.empty(); }
  std::string next() {
    if (words_.empty()) fail("a word is missing");
    std::string word = words_.front();
    words_ = words_.subspan(1);
    return word;
  }
  std::uint32_t next_number() { return static_cast<std::uint32_t>(number(next())); }

 private:
  std::span<char*> words_;
};

void step(Peer& peer, Script& script, const std::string& word) {
  if (word == "send") {
    const std::uint32_t type = script.next_number();
    const std::uint32_t repeat = script.next_number();
    const Bytes body = from_hex(script.next());
    peer.send(header(static_cast<std::uint32_t>(body.size()), type, repeat), body);
  } else if (word == "raw") {
    peer.send(from_hex(script.next()), {});
  } else if (word == "big") {
    const std::uint32_t type = script.next_number();
    const Bytes head = header(script.next_number(), type, 1);
    const Bytes body(script.next_number() - head.size());
    peer.send(head, body);
  } else if (word == "ready") {
    peer.send(header(0, type_ready, 1), {});
  } else if (word == "take") {
    const std::uint32_t wanted = script.next_number();
    if (const auto type = peer.take(); type != wanted) fail(fmt::format("type {}, not {}", type, wanted));
  } else if (word == "until") {
    const std::uint32_t wanted = script.next_number();
    do peer.send(header(0, type_ready, 1), {});
    while (peer.take() != wanted);
  } else if (word == "register") {
    Bytes body(24);
    store_be(body.data(), peer.block_offset() + number(script.next(), 16));
    store_be(body.data() + 16, number(script.next(), 16));
    peer.send(header(24, type_register, 1), body);
  } else if (word == "answer") {
    peer.answer(from_hex(script.next()));
  } else if (word == "answer-all") {
    peer.answer_all(from_hex(script.next()));
  } else if (word == "compress") {
    Bytes body(24);
    store_be(body.data(), static_cast<std::uint32_t>(number(script.next(), 16)));
    store_be(body.data() + 8, peer.block_offset() + number(script.next(), 16));
    store_be(body.data() + 16, number(script.next(), 16));
    peer.send(header(24, type_compress, 1), body);
  } else if (word == "gone") {
    peer.gone();
  } else if (word == "sleep") {
    std::this_thread::sleep_for(std::chrono::seconds(script.next_number()));
  } else {
    fail("no such step");
  }
}

}  // namespace

int main(int count, char** words) {
  Script script(std::span(words, static_cast<std::size_t>(count)).subspan(1));
  const std::string side = script.next();
  InetAddress place;
  place.host = script.next();
  place.port = script.next();
  Peer peer(side == "connect", place, from_hex(script.next()));
  const auto established = peer.establish();
  current_step = script.done() ? "end" : script.next();
  if (current_step == "refused") {
    if (established.has_value()) fail("it was accepted");
    fmt::print("refused: {}\n", established.error().text());
    return 0;
  }
  if (!established.has_value()) fail(established.error().text());
  std::puts("established");
  std::fflush(stdout);
  while (current_step != "end") {
    step(peer, script, current_step);
    current_step = script.done() ? "end" : script.next();
  }
  return 0;
}
