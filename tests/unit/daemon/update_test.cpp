// SPDX-License-Identifier: Apache-2.0
//
// A daemon in the place of another: what one tells the other, as values; a guest's link that is let go of and taken up;
// the process that is to take over. Whole updates are in tests/integration/update.py.
#include "daemon/machine/guest_link.hpp"
#include "daemon/machine/guest_record.hpp"
#include "daemon/machine/own_descriptors.hpp"
#include "daemon/update/inheritance.hpp"
#include "daemon/update/settings.hpp"
#include "daemon/update/successor.hpp"
#include "daemon/update/updater.hpp"
#include "guest/sealed_state.hpp"
#include "tests/unit/catch.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <thread>

using namespace migrationd;
using namespace std::chrono_literals;
using guest::Type;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* const directory = ::opendir("/proc/self/fd");
  REQUIRE(directory != nullptr);
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

UniqueFd memory(std::uint64_t length) {
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

guest::AddBlock block_of(const std::string& name, std::uint64_t address, guest::Tracking tracking) {
  guest::AddBlock out;
  out.name = name;
  out.address = address;
  out.length = 4 * ram::page_size;
  out.page_size = ram::page_size;
  out.tracking = tracking;
  return out;
}

RegisteredGuest a_guest() {
  GuestRegistration registration("test", 1s);
  guest::Hello hello;
  hello.library = "library";
  hello.machine_name = "machine";
  hello.vcpus = 3;
  REQUIRE(registration.take(Type::hello, bytes_of(hello), {}).has_value());
  const auto add = [&](const guest::AddBlock& block) {
    std::vector<UniqueFd> fds;
    fds.push_back(memory(block.length));
    if (guest::fds_of(block) == 2) fds.push_back(memory(ram::page_size));
    REQUIRE(registration.take(Type::add_block, bytes_of(block), std::move(fds)).has_value());
  };
  add(block_of("ram", 0x10000, guest::Tracking::write_protect));
  add(block_of("more", 0x100000, guest::Tracking::both));
  guest::AddDevice device;
  device.id = "disk";
  device.instance = 2;
  device.version = 5;
  device.minimum_version = 4;
  device.unmigratable = true;
  REQUIRE(registration.take(Type::add_device, bytes_of(device), {}).has_value());
  guest::Ready ready;
  ready.state = guest::GuestState::running;
  ready.uuid.fill(7);
  auto guest = registration.ready(bytes_of(ready));
  REQUIRE(guest.has_value());
  return std::move(*guest);
}

ino_t inode_of(int fd) {
  struct stat status {};
  REQUIRE(::fstat(fd, &status) == 0);
  return status.st_ino;
}

}  // namespace

// --- the command line ---------------------------------------------------------------------------------------------

TEST_CASE("Update.gives_the_new_daemon_the_command_line_without_how_to_begin") {
  using Words = std::vector<std::string>;
  const Words own{"--qmp",       "unix:/a",  "--incoming",        "defer",
                  "--paused",    "--name=x", "--incoming=tcp::1", "--take-over=9",
                  "--take-over", "12",       "--machine",         "synthetic"};
  CHECK(update::successor_arguments(own, false) == Words{"--qmp", "unix:/a", "--name=x", "--machine", "synthetic"});
  CHECK(update::successor_arguments(own, true) ==
        Words{"--qmp", "unix:/a", "--name=x", "--machine", "synthetic", "--incoming", "defer"});
  CHECK(update::successor_arguments(Words{"--name", "--incoming-box"}, true) == Words{"--name", "--incoming-box"});
}

// --- settings -----------------------------------------------------------------------------------------------------

TEST_CASE("UpdateSettings.come_back_as_they_were") {
  update::DaemonSettings settings;
  settings.version = "0.1.0";
  settings.machine = "attached";
  settings.origin = "tcp:there:1 \xc3\xa4";
  settings.capabilities.set(qmp::Capability::events);
  settings.capabilities.set(qmp::Capability::postcopy_ram);
  settings.parameters.downtime_limit = 77;
  settings.parameters.mode = qmp::MigMode::cpr_transfer;
  settings.parameters.tls_hostname = "host";
  settings.parameters.multifd_channels = 200;
  settings.control_paths = {true, false};
  settings.door_path = true;
  const auto got = update::decode_settings(update::encode_settings(settings));
  REQUIRE(got.has_value());
  CHECK(got->origin == settings.origin);
  CHECK(got->capabilities == settings.capabilities);
  CHECK(got->control_paths == settings.control_paths);
  CHECK(got->door_path);
  CHECK(update::encode_settings(*got) == update::encode_settings(settings));
}

TEST_CASE("UpdateSettings.what_is_not_known_is_refused_and_never_dropped") {
  const std::string good(as_text(update::encode_settings({})));
  const auto why = [](std::string text) {
    auto got = update::decode_settings(as_bytes(text));
    REQUIRE_FALSE(got.has_value());
    return got.error().text();
  };
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const auto at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
  };
  REQUIRE(update::decode_settings(as_bytes(good)).has_value());
  CHECK(contains(why(""), "no JSON object"));
  CHECK(contains(why(good.substr(0, good.size() - 1)), "no JSON object"));
  CHECK(contains(why(with("\"format\":1", "\"format\":2")), "of another version"));
  CHECK(contains(why(with("\"machine\":\"none\"", "\"machine\":7")), "machine: no string"));
  CHECK(contains(why(with("\"xbzrle\"", "\"unheard-of\"")), "unheard-of"));
  CHECK(contains(why(with("\"downtime-limit\":300", "\"downtime-limit\":300,\"unheard-of\":1")), "unheard-of"));
  CHECK(contains(why(with("\"door-path\"", "\"other\"")), "a member is missing"));
}

// --- the inheritance ----------------------------------------------------------------------------------------------

TEST_CASE("UpdateInheritance.takes_what_is_its_own_and_leaves_the_machine_the_rest") {
  const std::size_t before = open_descriptors();
  const auto entries = [](std::initializer_list<std::int32_t> ids, std::string machine) {
    update::DaemonSettings settings;
    settings.machine = std::move(machine);
    settings.control_paths = {true};
    std::vector<cpr::NamedDescriptor> out;
    out.push_back({"ram", 0, memory(4096)});
    // Of this name a block may be, too: the id tells.
    out.push_back({std::string(own_descriptors), 0, memory(4096)});
    for (const std::int32_t id : ids) {
      auto fd = id == settings_id ? *guest::make_state(update::encode_settings(settings)) : memory(4096);
      out.push_back({std::string(own_descriptors), id, std::move(fd)});
    }
    return out;
  };
  const auto why = [](std::vector<cpr::NamedDescriptor> list) {
    auto got = update::take_inheritance(std::move(list));
    REQUIRE_FALSE(got.has_value());
    return got.error().text();
  };
  {
    auto got = update::take_inheritance(entries({first_control_id, settings_id, main_channel_id}, "parked"));
    REQUIRE(got.has_value());
    REQUIRE(got->rest.size() == 2);
    CHECK(got->control.size() == 1);
    CHECK_FALSE(got->door);
  }
  CHECK(contains(why({}), "no settings"));
  CHECK(contains(why(entries({settings_id}, "parked")), "no main channel"));
  CHECK(contains(why(entries({settings_id, main_channel_id}, "parked")), "control socket 0 was not handed over"));
  CHECK(contains(why(entries({settings_id, main_channel_id, first_control_id}, "attached")), "the guest's connection"));
  // Memory that could still change, or is too much.
  auto unsealed = entries({main_channel_id, first_control_id}, "parked");
  unsealed.push_back({std::string(own_descriptors), settings_id, memory(4096)});
  CHECK(contains(why(std::move(unsealed)), "not sealed"));
  auto huge = entries({main_channel_id}, "parked");
  huge.push_back({std::string(own_descriptors), settings_id, memory(update::settings_bytes + 4096)});
  CHECK(contains(why(std::move(huge)), "a record of"));
  CHECK(open_descriptors() == before);
}

// --- a guest's registration and standing --------------------------------------------------------------------------

TEST_CASE("GuestRecord.a_registration_is_the_same_guest_over_the_same_memory") {
  const RegisteredGuest guest = a_guest();
  const Bytes record = encode_registration(guest);
  auto descriptors = share_memory(guest);
  REQUIRE(descriptors.has_value());
  REQUIRE(descriptors->size() == 3);
  CHECK(descriptors->front().name == "more");
  descriptors->push_back({"other", 0, memory(4096)});
  const auto got = decode_registration(record, *descriptors);
  REQUIRE(got.has_value());
  CHECK(descriptors->size() == 1);
  REQUIRE(got->ram.size() == 2);
  CHECK(got->ram.at(0).name() == "ram");
  CHECK(inode_of(got->ram.at(0).fd()) == inode_of(guest.ram.at(0).fd()));
  CHECK(inode_of(got->bitmaps[1]->fd()) == inode_of(guest.bitmaps[1]->fd()));
  CHECK(got->bitmaps[0] == nullptr);
  CHECK(got->addresses == guest.addresses);
  CHECK(got->tracking == guest.tracking);
  CHECK(got->hello.vcpus == 3);
  CHECK(got->ready.uuid == guest.ready.uuid);
  REQUIRE(got->devices.size() == 1);
  CHECK(got->devices[0].unmigratable);
  CHECK(encode_registration(*got) == record);
}

TEST_CASE("GuestRecord.a_registration_that_is_wrong_is_refused") {
  const RegisteredGuest guest = a_guest();
  const Bytes record = encode_registration(guest);
  const auto why = [&](ByteView bytes, bool with_memory = true) {
    auto descriptors = *share_memory(guest);
    if (!with_memory) descriptors.clear();
    auto got = decode_registration(bytes, descriptors);
    REQUIRE_FALSE(got.has_value());
    return got.error().text();
  };
  CHECK(contains(why(record, false), "block 'ram': its memory was not handed over"));
  Bytes longer = record;
  longer.push_back(std::byte{0});
  CHECK(contains(why(longer), "1 bytes too many"));
  Bytes other = record;
  other[0] = std::byte{0};
  CHECK(contains(why(other), "magic"));
  for (std::size_t length = 0; length < record.size(); ++length)
    CHECK_FALSE(why(ByteView(record).first(length)).empty());
  // Another file under the block's name is not that memory.
  auto descriptors = *share_memory(guest);
  for (auto& entry : descriptors) {
    if (entry.name == "ram") entry.fd = memory(2 * ram::page_size);
  }
  CHECK_FALSE(decode_registration(record, descriptors).has_value());
}

TEST_CASE("GuestRecord.a_standing_comes_back_and_is_believed_within_bounds") {
  GuestStanding standing;
  standing.state = guest::GuestState::running;
  standing.last_serial = 12;
  standing.last_blocker = 9;
  standing.blockers = {{4, "one"}, {9, "two"}};
  const Bytes record = encode_standing(standing);
  const auto got = decode_standing(record);
  REQUIRE(got.has_value());
  CHECK(got->last_serial == 12);
  CHECK(got->last_blocker == 9);
  CHECK(got->blockers == standing.blockers);
  for (std::size_t length = 0; length < record.size(); ++length)
    CHECK_FALSE(decode_standing(ByteView(record).first(length)).has_value());
  const auto refused = [&](std::size_t at, std::uint8_t value) {
    Bytes bytes = record;
    bytes[at] = std::byte{value};
    return !decode_standing(bytes).has_value();
  };
  CHECK(refused(0, 0));
  CHECK(refused(4, 0));  // empty
  CHECK(refused(4, 3));
  CHECK(refused(13, 1));  // 16 million blockers
  CHECK(refused(23, 7));  // a control character in a reason
}

// --- a link that is let go of -------------------------------------------------------------------------------------

namespace {

struct Heard final : GuestListener {
  Result<void> on_message(GuestMessage message) override {
    const std::lock_guard lock(mutex);
    serials.push_back(message.header.serial);
    changed.notify_all();
    return {};
  }
  void on_lost(const Error& why) override {
    const std::lock_guard lock(mutex);
    lost = why.text();
    changed.notify_all();
  }
  bool wait_for(std::size_t messages) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, 30s, [&] { return serials.size() >= messages; });
  }
  bool wait_lost() {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, 30s, [&] { return lost.has_value(); });
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::uint32_t> serials;
  std::optional<std::string> lost;
};

struct Sockets {
  UniqueFd daemon;
  UniqueFd guest;
  Sockets() {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    daemon.reset(ends[0]);
    guest.reset(ends[1]);
  }
  // A request of the guest's.
  void say(std::uint32_t serial) {
    const Bytes packet = guest::packet(static_cast<std::uint16_t>(Type::detach), serial, guest::Empty{});
    REQUIRE(::send(guest.get(), packet.data(), packet.size(), 0) > 0);
  }
  // The serial of what the daemon sends next, answered if it is a request.
  std::uint32_t hear() {
    pollfd wait{guest.get(), POLLIN, 0};
    REQUIRE(::poll(&wait, 1, 30000) == 1);
    auto packet = guest::try_receive_packet(guest.get(), "the daemon");
    REQUIRE(packet.has_value());
    REQUIRE(packet->has_value());
    const guest::Header header = (*packet)->header;
    if (header.is_reply()) return header.serial;
    const Bytes answer =
        guest::packet(static_cast<std::uint16_t>(header.type | guest::reply_bit), header.serial, guest::Empty{});
    REQUIRE(::send(guest.get(), answer.data(), answer.size(), 0) > 0);
    return header.serial;
  }
  bool silent() const {
    pollfd wait{guest.get(), POLLIN, 0};
    return ::poll(&wait, 1, 0) == 0;
  }
};

}  // namespace

TEST_CASE("GuestLink.what_is_said_while_it_rests_waits_for_the_next_one") {
  Sockets sockets;
  Heard first_heard;
  Heard second_heard;
  auto first = *GuestLink::start(std::move(sockets.daemon), 10s, first_heard);
  std::thread guest([&] { sockets.hear(); });
  REQUIRE(first->ask(Type::stop, guest::Empty{}).has_value());
  guest.join();
  REQUIRE(first->let_go(10s).has_value());
  CHECK(contains(first->ask(Type::start, guest::Empty{}).error().text(), "is being handed over"));
  sockets.say(5);
  auto second = *GuestLink::prepare(*first->share_socket(), 10s, second_heard);
  const std::uint32_t last = first->last_serial();
  first.reset();
  CHECK(first_heard.serials.empty());
  CHECK_FALSE(first_heard.lost.has_value());
  CHECK(sockets.silent());
  second->take_up(last);
  REQUIRE(second_heard.wait_for(1));
  CHECK(second_heard.serials == std::vector<std::uint32_t>{5});
  std::uint32_t serial = 0;
  std::thread again([&] { serial = sockets.hear(); });
  REQUIRE(second->ask(Type::start, guest::Empty{}).has_value());
  again.join();
  CHECK(serial == last + 1);
}

TEST_CASE("GuestLink.goes_on_where_it_was_when_the_hand_over_failed") {
  Sockets sockets;
  Heard heard;
  auto link = *GuestLink::start(std::move(sockets.daemon), 10s, heard);
  REQUIRE(link->let_go(10s).has_value());
  sockets.say(3);
  link->take_up(link->last_serial());
  REQUIRE(heard.wait_for(1));
  link->answer({static_cast<std::uint16_t>(Type::detach), 3}, guest::Empty{});
  CHECK(sockets.hear() == 3);
  sockets.guest.reset();
  CHECK(heard.wait_lost());
}

TEST_CASE("GuestLink.rests_only_when_nothing_is_under_way") {
  Sockets sockets;
  Heard heard;
  auto link = *GuestLink::start(std::move(sockets.daemon), 10s, heard);
  sockets.say(3);
  REQUIRE(heard.wait_for(1));
  // The guest's request was read and is not answered.
  auto early = link->let_go(20ms);
  REQUIRE_FALSE(early.has_value());
  CHECK(contains(early.error().text(), "a request is under way"));
  std::thread control([&] { link->answer({static_cast<std::uint16_t>(Type::detach), 3}, guest::Empty{}); });
  CHECK(bool(link->let_go(30s)));
  control.join();
}

TEST_CASE("GuestLink.a_guest_that_hangs_is_not_handed_over") {
  Sockets sockets;
  Heard heard;
  auto link = *GuestLink::start(std::move(sockets.daemon), 20ms, heard);
  REQUIRE_FALSE(link->ask(Type::stop, guest::Empty{}).has_value());
  auto refused = link->let_go(10s);
  REQUIRE_FALSE(refused.has_value());
  CHECK(contains(refused.error().text(), "has not answered STOP yet"));
  // Its late answer is heard all the same, and then it can go.
  sockets.hear();
  sockets.say(3);
  REQUIRE(heard.wait_for(1));
  link->answer({static_cast<std::uint16_t>(Type::detach), 3}, guest::Empty{});
  CHECK(bool(link->let_go(30s)));
}

TEST_CASE("GuestLink.one_that_rests_ends_without_a_word") {
  Sockets sockets;
  Heard heard;
  const UniqueFd copy(::fcntl(sockets.daemon.get(), F_DUPFD_CLOEXEC, 0));
  auto link = *GuestLink::prepare(std::move(sockets.daemon), 10s, heard);
  link.reset();
  CHECK_FALSE(heard.lost.has_value());
  // The connection stands.
  sockets.say(3);
  CHECK(guest::try_receive_packet(copy.get(), "the guest")->has_value());
}

// --- the child ----------------------------------------------------------------------------------------------------

// It is started as a child of our parent, so these run in a process of their own.
int in_a_child(int (*work)()) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(work());
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_CASE("Successor.is_ended_and_gone_or_has_ended_by_itself") {
  CHECK(in_a_child([] {
          const auto channel = [] { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); };
          auto missing = update::Successor::start("/nonexistent/program", {}, channel());
          if (missing || missing.error().text().find("start '/nonexistent/program'") == std::string::npos) return 1;
          auto sleeper = update::Successor::start("/bin/sh", {"-c", "exec sleep 1000"}, channel());
          if (!sleeper) return 2;
          if ((*sleeper)->end(20ms)) return 3;
          if ((*sleeper)->end({})) return 4;
          auto failing = update::Successor::start("/bin/sh", {"-c", "exit 3"}, channel());
          if (!failing) return 5;
          return (*failing)->end(30s) ? 0 : 6;
        }) == 0);
}

TEST_CASE("Successor.has_the_channel_and_no_other_descriptor_of_ours") {
  CHECK(in_a_child([] {
          const UniqueFd other(::open("/dev/null", O_RDONLY | O_CLOEXEC));
          UniqueFd channel(::open("/dev/null", O_RDONLY | O_CLOEXEC));
          int ends[2];
          if (::pipe2(ends, 0) != 0) return 1;
          const std::string number = std::to_string(channel.get());
          const std::string script = "test \"$0\" = --take-over=" + number + " && test -e /proc/self/fd/" + number +
                                     " && ! test -e /proc/self/fd/" + std::to_string(other.get()) + " && echo y >&" +
                                     std::to_string(ends[1]);
          auto started = update::Successor::start("/bin/sh", {"-c", script}, std::move(channel));
          ::close(ends[1]);
          char word = 'n';
          if (!started || ::read(ends[0], &word, 1) != 1) return 2;
          return word == 'y' ? 0 : 3;
        }) == 0);
}
