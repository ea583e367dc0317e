// SPDX-License-Identifier: Apache-2.0
//
// The daemon's side of an attached guest: registration and state as values, the link against a peer that is played
// here.
#include "daemon/guest_door.hpp"
#include "daemon/machine/attached_state.hpp"
#include "daemon/machine/guest_link.hpp"
#include "daemon/machine/guest_registration.hpp"
#include "protocol/stream/vmdescription.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

using namespace migrationd;
using namespace std::chrono_literals;
using guest::Type;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

UniqueFd sealed(std::uint64_t length) {
  UniqueFd fd(::memfd_create("block", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(length)) == 0);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  return fd;
}

template <class Body>
Bytes bytes_of(const Body& body) {
  ByteWriter out;
  guest::encode(body, out);
  return std::move(out).take();
}

std::vector<UniqueFd> list_of(UniqueFd fd) {
  std::vector<UniqueFd> fds;
  fds.push_back(std::move(fd));
  return fds;
}

guest::Hello a_guest() {
  guest::Hello hello;
  hello.library = "test";
  hello.machine_name = "machine";
  return hello;
}

guest::AddDevice device(const std::string& id, std::uint32_t version = 2, std::uint32_t minimum = 1) {
  guest::AddDevice out;
  out.id = id;
  out.version = version;
  out.minimum_version = minimum;
  return out;
}

guest::StateSection section(const std::string& id, std::size_t size, std::string description = {}) {
  guest::StateSection out;
  out.id = id;
  out.version = 2;
  out.body.assign(size, std::byte{5});
  out.description = std::move(description);
  return out;
}

// What the link says, kept.
struct Listener final : GuestListener {
  Result<void> on_message(GuestMessage message) override {
    const std::lock_guard lock(mutex);
    messages.push_back(std::move(message));
    changed.notify_all();
    return {};
  }
  void on_lost(const Error& why) override {
    const std::lock_guard lock(mutex);
    lost = why.text();
    changed.notify_all();
  }
  std::string wait_lost() {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, 30s, [&] { return lost.has_value(); }));
    return *lost;
  }
  void wait_messages(std::size_t count) {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, 30s, [&] { return messages.size() >= count; }));
  }
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<GuestMessage> messages;
  std::optional<std::string> lost;
};

struct Link {
  Listener listener;
  UniqueFd peer;
  std::shared_ptr<GuestLink> link;

  explicit Link(std::chrono::milliseconds deadline = 30s) {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    peer.reset(ends[1]);
    auto started = GuestLink::start(UniqueFd(ends[0]), deadline, listener);
    REQUIRE(started.has_value());
    link = std::move(*started);
  }
  ~Link() { link.reset(); }

  // Called by threads that play the guest too, and the test framework's assertions are for one thread: a fault ends the
  // program with a word.
  static void need(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "the guest that is played: %s\n", what);
    std::abort();
  }
  guest::Header read() {
    Bytes packet(guest::packet_bytes);
    pollfd wait{peer.get(), POLLIN, 0};
    need(::poll(&wait, 1, 30000) == 1, "nothing came");
    const ssize_t got = ::recv(peer.get(), packet.data(), packet.size(), 0);
    need(got > 0, "the daemon's side hung up");
    ByteReader in(ByteView(packet).first(static_cast<std::size_t>(got)));
    auto header = guest::decode_header(in);
    need(header.has_value(), "a packet without a header came");
    return *header;
  }
  void write(const Bytes& packet) {
    need(::send(peer.get(), packet.data(), packet.size(), 0) > 0, "nothing could be sent");
  }
  template <class Body>
  void answer(const guest::Header& request, const Body& body) {
    write(guest::packet(static_cast<std::uint16_t>(request.type | guest::reply_bit), request.serial, body));
  }
};

}  // namespace

// --- registration
// -----------------------------------------------------------------------------------------------------

TEST_CASE("GuestRegistration.takes_a_guest_from_hello_to_ready") {
  GuestRegistration registration("test", 5s);
  auto welcome = registration.take(Type::hello, bytes_of(a_guest()), {});
  REQUIRE(welcome.has_value());
  CHECK(guest::decode<guest::Welcome>(welcome->body)->deadline_ms == 5000);
  guest::AddBlock block;
  block.name = "ram";
  block.address = 0x10000;
  block.length = 2 * ram::page_size;
  block.page_size = ram::page_size;
  REQUIRE(registration.take(Type::add_block, bytes_of(block), list_of(sealed(block.length))).has_value());
  REQUIRE(registration.take(Type::add_device, bytes_of(device("disk")), {}).has_value());
  guest::Ready ready;
  ready.state = guest::GuestState::running;
  auto guest = registration.ready(bytes_of(ready));
  REQUIRE(guest.has_value());
  CHECK(guest->ram.size() == 1);
  CHECK(guest->addresses.size() == 1);
  CHECK(guest->devices.size() == 1);
}

TEST_CASE("GuestRegistration.refuses_and_stays_as_it_was") {
  GuestRegistration registration("test", 5s);
  CHECK(registration.take(Type::add_device, bytes_of(device("disk")), {}).error().kind() == ErrorKind::wire);
  guest::Hello newer = a_guest();
  newer.lowest = newer.highest = 9;
  CHECK(contains(registration.take(Type::hello, bytes_of(newer), {}).error().text(), "the guest 9 to 9"));
  REQUIRE(registration.take(Type::hello, bytes_of(a_guest()), {}).has_value());
  CHECK(registration.take(Type::hello, bytes_of(a_guest()), {}).error().kind() == ErrorKind::wire);
  guest::AddBlock block;
  block.name = "ram";
  block.address = 0x10000;
  block.length = 2 * ram::page_size;
  block.page_size = ram::page_size;
  CHECK_FALSE(registration.take(Type::add_block, bytes_of(block), list_of(sealed(ram::page_size))).has_value());
  REQUIRE(registration.take(Type::add_block, bytes_of(block), list_of(sealed(block.length))).has_value());
  block.name = "other";
  block.address += ram::page_size;
  auto over = registration.take(Type::add_block, bytes_of(block), list_of(sealed(block.length)));
  CHECK(contains(over.error().text(), "overlap with those of block 'ram'"));
  block.address += ram::page_size;
  REQUIRE(registration.take(Type::add_block, bytes_of(block), list_of(sealed(block.length))).has_value());
}

// --- state
// ------------------------------------------------------------------------------------------------------------

TEST_CASE("AttachedState.goes_into_a_stream_and_back") {
  const std::vector<guest::AddDevice> devices{device("disk"), device("net")};
  const std::string described =
      R"("vmsd_name": "d", "version": 2, "fields": [{"name": "x", "type": "buffer", "size": 8}])";
  auto saved = state_to_stream({section("disk", 8, described), section("net", 3)}, devices, "running", 2);
  REQUIRE(saved.has_value());
  REQUIRE(saved->sections.size() == 3);
  CHECK(saved->sections[0].name == "globalstate");
  CHECK(saved->sections[2].section_id == 4);
  auto parsed = stream::parse_description(*saved->description);
  REQUIRE(parsed.has_value());
  CHECK(parsed->devices.size() == 3);
  auto back = state_from_stream(std::move(*saved), devices);
  REQUIRE(back.has_value());
  CHECK(back->run_state == "running");
  REQUIRE(back->sections.size() == 2);
  CHECK(back->sections[0].body.size() == 8);
}

TEST_CASE("AttachedState.a_device_that_is_not_needed_is_left_out") {
  const std::vector<guest::AddDevice> devices{device("disk"), device("net")};
  auto saved = state_to_stream({section("net", 3)}, devices, "running", 2);
  REQUIRE(saved.has_value());
  REQUIRE(saved->sections.size() == 2);
  CHECK(saved->sections[1].name == "net");
  auto back = state_from_stream(std::move(*saved), devices);
  REQUIRE(back.has_value());
  REQUIRE(back->sections.size() == 1);
  CHECK(back->sections[0].id == "net");
}

TEST_CASE("AttachedState.refuses_what_a_guest_may_not_say") {
  const std::vector<guest::AddDevice> devices{device("disk")};
  const auto why = [&](std::vector<guest::StateSection> sections) {
    auto saved = state_to_stream(std::move(sections), devices, "running", 2);
    REQUIRE_FALSE(saved.has_value());
    return saved.error().text();
  };
  CHECK(contains(why({section("net", 1)}), "never registered"));
  CHECK(contains(why({section("disk", 8, "nonsense")}), "no JSON"));
  const std::string fields =
      R"("vmsd_name": "d", "version": 2, "fields": [{"name": "x", "type": "buffer", "size": 7}])";
  CHECK(contains(why({section("disk", 8, fields)}), "accounts for 7 of 8"));
  CHECK(contains(why({section("disk", 7, fields + R"(}, {"name": "evil", "instance_id": 0)")}), "no JSON"));
  guest::StateSection newer = section("disk", 1);
  newer.version = 3;
  CHECK(contains(why({newer}), "saved as version 3"));
}

TEST_CASE("AttachedState.refuses_streams_of_other_machines") {
  const std::vector<guest::AddDevice> devices{device("disk", 5, 3)};
  const auto why = [&](const char* name, std::uint32_t version) {
    DeviceState state;
    state.sections.push_back({2, name, 0, version, {}, false});
    auto loaded = state_from_stream(std::move(state), devices);
    REQUIRE_FALSE(loaded.has_value());
    return loaded.error().text();
  };
  CHECK(contains(why("net", 3), "the guest here has not"));
  CHECK(contains(why("disk", 2), "reads 3 to 5"));
  CHECK(contains(why("disk", 6), "reads 3 to 5"));
}

TEST_CASE("AttachedState.a_stream_may_name_a_device_without_its_path") {
  const std::vector<guest::AddDevice> devices{device("0000:00:02.0/net", 3, 1), device("disk", 3, 1),
                                              device("0000:00:03.0/net", 3, 1), device("bus/disk", 3, 1)};
  const auto finds = [&](const char* name, std::uint32_t instance) {
    DeviceState state;
    state.sections.push_back({2, name, instance, 3, {}, false});
    return state_from_stream(std::move(state), devices).has_value();
  };
  CHECK(finds("net", 0));
  CHECK(finds("net", 1));
  CHECK_FALSE(finds("net", 2));
  CHECK(finds("disk", 0));
  CHECK(finds("disk", 1));  // the second of that name, which has a path
  CHECK_FALSE(finds("et", 0));
  CHECK(finds("0000:00:03.0/net", 0));
}

// --- the link
// -----------------------------------------------------------------------------------------------------------

TEST_CASE("GuestLink.asks_and_gets_the_answer_or_the_refusal") {
  Link pair;
  std::thread guest([&] {
    pair.answer(pair.read(), guest::Empty{});
    const guest::Header second = pair.read();
    pair.write(guest::packet(guest::refusal, second.serial, guest::Refusal{"not now"}));
  });
  CHECK(pair.link->ask(Type::stop, guest::Empty{}).has_value());
  auto refused = pair.link->ask(Type::start, guest::Empty{});
  guest.join();
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().text() == "the guest refuses START: not now");
}

TEST_CASE("GuestLink.gives_up_a_question_and_undoes_its_late_answer") {
  Link pair(50ms);
  auto late = pair.link->ask(Type::stop, guest::Empty{}, 1, -1,
                             guest::packet(static_cast<std::uint16_t>(Type::start), 0, guest::Empty{}));
  REQUIRE_FALSE(late.has_value());
  CHECK(contains(late.error().text(), "no answer to STOP"));
  auto next = pair.link->ask(Type::save, guest::Empty{});
  REQUIRE_FALSE(next.has_value());
  CHECK(contains(next.error().text(), "has not answered STOP yet, and is not asked for SAVE"));
  const guest::Header stop = pair.read();
  CHECK(stop.type == static_cast<std::uint16_t>(Type::stop));
  pair.answer(stop, guest::Empty{});
  const guest::Header undo = pair.read();
  CHECK(undo.type == static_cast<std::uint16_t>(Type::start));
  CHECK(undo.serial != stop.serial);
  pair.answer(undo, guest::Empty{});
  // In order: once this notice was heard, the answer before it was.
  pair.write(guest::packet(static_cast<std::uint16_t>(Type::given_back), 0, guest::GivenBack{0, 0, 4096}));
  pair.listener.wait_messages(1);
  std::thread guest([&] { pair.answer(pair.read(), guest::Empty{}); });
  CHECK(pair.link->ask(Type::stop, guest::Empty{}, 600).has_value());
  guest.join();
}

TEST_CASE("GuestLink.wakes_who_asks_when_the_guest_dies") {
  Link pair;
  std::thread guest([&] {
    pair.read();
    pair.peer.reset();
  });
  auto asked = pair.link->ask(Type::stop, guest::Empty{});
  guest.join();
  REQUIRE_FALSE(asked.has_value());
  CHECK(contains(asked.error().text(), "the guest is gone"));
  pair.listener.wait_lost();
  CHECK(contains(pair.link->ask(Type::stop, guest::Empty{}).error().text(), "the guest is gone"));
}

TEST_CASE("GuestLink.a_guest_that_is_gone_is_called_gone_whoever_meets_it_first") {
  for (int i = 0; i < 50; ++i) {
    Link pair;
    pair.peer.reset();
    auto asked = pair.link->ask(Type::stop, guest::Empty{});
    REQUIRE_FALSE(asked.has_value());
    CHECK(contains(asked.error().text(), "the guest is gone: "));
  }
}

TEST_CASE("GuestLink.ends_with_a_word_when_the_protocol_is_broken") {
  const auto cut_off = [](const Bytes& packet) {
    Link pair;
    pair.write(packet);
    return pair.listener.wait_lost();
  };
  const auto reply = static_cast<std::uint16_t>(guest::reply_bit | static_cast<std::uint16_t>(Type::stop));
  CHECK(contains(cut_off(guest::packet(reply, 7, guest::Empty{})), "that nobody waits for"));
  CHECK(contains(cut_off(guest::packet(guest::refusal, 7, guest::Refusal{"no"})), "that nobody waits for"));
  CHECK(contains(cut_off(Bytes(3)), "less than a header"));
  CHECK(contains(cut_off(Bytes(guest::packet_bytes + 1)), "more than 65536 bytes"));
  CHECK(contains(cut_off(guest::packet(static_cast<std::uint16_t>(Type::add_block), 1, guest::AddBlock{})),
                 "0 descriptors"));
}

TEST_CASE("GuestLink.takes_one_request_of_the_guest_at_a_time") {
  Link pair;
  const auto request = [](std::uint32_t serial) {
    return guest::packet(static_cast<std::uint16_t>(Type::add_device), serial, device("disk"));
  };
  pair.write(request(1));
  pair.listener.wait_messages(1);
  pair.link->answer(pair.listener.messages[0].header, guest::Empty{});
  CHECK(pair.read().serial == 1);
  pair.write(request(2));
  pair.write(request(3));
  CHECK(contains(pair.listener.wait_lost(), "before request 2 was answered"));
}

// --- options
// ------------------------------------------------------------------------------------------------------------

TEST_CASE("AttachedOptions.are_parsed_or_refused_in_a_sentence") {
  auto options = parse_attached_options("attached,socket=/run/g.sock,mode=0660,group=kvm,uid=7,deadline=100");
  REQUIRE(options.has_value());
  CHECK(options->socket.path == "/run/g.sock");
  CHECK(options->socket.mode == 0660);
  CHECK(options->socket.group == "kvm");
  CHECK(options->uid == 7U);
  CHECK(options->deadline == 100ms);
  CHECK(contains(parse_attached_options("attached").error().text(), "socket=PATH is needed"));
  CHECK(contains(parse_attached_options("attached,socket=").error().text(), "socket=PATH is needed"));
  CHECK(contains(parse_attached_options("attached,socket=/a,uid=x").error().text(), "not a number"));
  CHECK(contains(parse_attached_options("attached,socket=/a,deadline=0").error().text(), "from 10 to 600000"));
  CHECK(contains(parse_attached_options("attached,socket=/a,mode=9").error().text(), "octal"));
  CHECK(contains(parse_attached_options("attached,socket=/a,ram=1G").error().text(), "'ram=1G' is not an option"));
}
