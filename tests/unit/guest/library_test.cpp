// SPDX-License-Identifier: Apache-2.0
// libmigrationd-guest against a scripted daemon: what it tells, what it answers, and what it refuses.
#include "guest/sealed_state.hpp"
#include "tests/unit/guest/recorder.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>

#include <thread>

using namespace migrationd;
using namespace migrationd::guest;
using namespace migrationd::guest::test;

namespace {

Packet save_of(FakeDaemon& daemon) {
  auto saved = daemon.call(Type::save, Empty{});
  REQUIRE(saved.has_value());
  INFO(FakeDaemon::sentence_of(*saved));
  REQUIRE(saved->fds.size() == 1);
  return std::move(*saved);
}

std::vector<StateSection> sections_of(const Packet& saved) {
  const auto length = decode<StateLength>(saved.body);
  REQUIRE(length.has_value());
  const auto bytes = read_state(saved.fds[0].get(), length->length);
  REQUIRE(bytes.has_value());
  const auto sections = decode_state(*bytes);
  REQUIRE(sections.has_value());
  return *sections;
}

std::string load_fault(FakeDaemon& daemon, const std::vector<StateSection>& sections) {
  const auto bytes = encode_state(sections);
  REQUIRE(bytes.has_value());
  const auto file = make_state(*bytes);
  REQUIRE(file.has_value());
  const int fds[] = {file->get()};
  return daemon.why_not(Type::load, StateLength{bytes->size()}, fds);
}

}  // namespace

TEST_CASE("GuestLibrary.attaching_tells_blocks_devices_and_state") {
  Subject subject(MD_TRACK_BOTH);
  FakeDaemon daemon;
  const std::uint8_t uuid[16] = {1, 2, 3};
  REQUIRE(md_guest_set_uuid(subject.get(), uuid) == 0);
  REQUIRE(md_guest_set_vcpus(subject.get(), 3) == 0);
  REQUIRE(md_guest_add_device(subject.get(), &Subject::device, &subject.counter, nullptr, MD_ANY_INSTANCE) == 0);
  const Registration told = attach(subject.get(), daemon, MD_PAUSED);
  CHECK(told.hello.machine_name == "fake-machine");
  CHECK(told.hello.vcpus == 3);
  REQUIRE(told.blocks.size() == 1);
  CHECK(told.blocks[0].address == reinterpret_cast<std::uintptr_t>(subject.memory));
  CHECK(told.blocks[0].tracking == Tracking::both);
  REQUIRE(told.memory[0].size() == 2);
  CHECK((::fcntl(told.memory[0][0].get(), F_GET_SEALS) & F_SEAL_SHRINK) != 0);
  CHECK((::fcntl(told.memory[0][1].get(), F_GET_SEALS) & F_SEAL_SHRINK) != 0);
  REQUIRE(told.devices.size() == 2);
  CHECK(told.devices[0].id == "bus/1/counter");
  CHECK(told.devices[1].id == "counter");
  CHECK(told.devices[1].version == 2);
  CHECK(told.devices[1].minimum_version == 1);
  CHECK(told.ready.state == GuestState::paused);
  CHECK(told.ready.uuid[2] == 3);
  CHECK(md_guest_is_attached(subject.get()) == 1);
  CHECK(md_guest_new_block(subject.get(), "late", 4096, 4096, MD_TRACK_NONE) == nullptr);
  CHECK(subject.error() == "the guest is attached; this is for before");
  CHECK(detach(subject.get(), daemon) == 0);
  CHECK(md_guest_is_attached(subject.get()) == 0);
  CHECK(!subject.recorder.saw("event"));
}

TEST_CASE("GuestLibrary.stop_and_start_come_in_turn") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  CHECK(daemon.why_not(Type::start, Empty{}) == "the guest runs already");
  daemon.must(Type::stop, Empty{});
  CHECK(daemon.why_not(Type::stop, Empty{}) == "the guest does not run");
  daemon.must(Type::start, Empty{});
  subject.recorder.on_stop = [&] { return md_guest_refuse(subject.get(), "a disk is busy"); };
  CHECK(daemon.why_not(Type::stop, Empty{}) == "stop() refused: a disk is busy");
  subject.recorder.on_stop = [] { return -1; };
  CHECK(daemon.why_not(Type::stop, Empty{}) == "stop() refused");
  CHECK(subject.recorder.calls() == std::vector<std::string>{"stop", "start", "stop", "stop"});
}

TEST_CASE("GuestLibrary.state_is_saved_with_its_description_and_loaded_again") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_PAUSED);
  auto sections = sections_of(save_of(daemon));
  REQUIRE(sections.size() == 1);
  CHECK(sections[0].id == "bus/1/counter");
  CHECK(sections[0].version == 2);
  CHECK(sections[0].body.size() == 4 + 2 + 2);
  CHECK(sections[0].description ==
        R"("vmsd_name": "counter", "version": 2, "fields": [{"name": "value", "type": "uint32", "size": 4}, )"
        R"({"name": "used", "type": "uint16", "size": 2}, {"name": "bytes", "type": "buffer", "size": 2}])");
  subject.counter = {};
  subject.counter.value = 0;
  sections[0].description.clear();
  CHECK(load_fault(daemon, sections).empty());
  CHECK(subject.counter.value == 7);
  sections[0].id = "counter";  // its bare name, as QEMU's readers do it
  CHECK(load_fault(daemon, sections).empty());
  daemon.must(Type::start, Empty{});
  CHECK(load_fault(daemon, sections) == "the guest runs: nothing can be loaded");
}

TEST_CASE("GuestLibrary.state_that_does_not_fit_is_refused_and_the_guest_not_started") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_EMPTY);
  CHECK(daemon.why_not(Type::start, Empty{}) == "the guest is empty: nothing was loaded");
  const auto good = sections_of(save_of(daemon));
  auto bad = good;
  bad[0].id = "timer";
  CHECK(load_fault(daemon, bad) == "load device 'timer' instance 0: this guest has no such device");
  bad = good;
  bad[0].version = 3;
  CHECK(load_fault(daemon, bad) == "load device 'bus/1/counter' instance 0: version 3 is not in 1 to 2");
  bad = good;
  bad[0].body.push_back(std::byte{0});
  CHECK(load_fault(daemon, bad) == "load device 'bus/1/counter' instance 0: 1 bytes of its state are left over");
  bad = good;
  bad[0].body[5] = std::byte{9};  // more than the array has
  CHECK(load_fault(daemon, bad).find("Failed to load counter:bytes: count 9 is outside 0..4") != std::string::npos);
  bad = {good[0], good[0]};
  bad[1].id = "counter";
  CHECK(load_fault(daemon, bad) == "load device 'counter' instance 0: it came twice");
  CHECK(daemon.why_not(Type::start, Empty{}) == "the guest's state was loaded in part only");
  CHECK(load_fault(daemon, good).empty());
  daemon.must(Type::start, Empty{});
}

TEST_CASE("GuestLibrary.state_memfds_must_be_sealed_and_as_long_as_said") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_EMPTY);
  const UniqueFd open_file(::memfd_create("open", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(open_file.get(), 64) == 0);
  const int unsealed[] = {open_file.get()};
  CHECK(daemon.why_not(Type::load, StateLength{64}, unsealed) == "the state's memfd is not sealed against everything");
  const auto sealed = make_state(*encode_state({}));
  const int fds[] = {sealed->get()};
  CHECK(daemon.why_not(Type::load, StateLength{64}, fds) == "the state's memfd has 8 bytes, not 64");
  const UniqueFd null_device(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int no_memfd[] = {null_device.get()};
  CHECK(daemon.why_not(Type::load, StateLength{64}, no_memfd) == "the state is in no sealed memfd");
  CHECK(daemon.why_not(Type::load, StateLength{8}, fds).empty());
}

TEST_CASE("GuestLibrary.notices_and_switches_reach_their_callbacks") {
  Subject subject(MD_TRACK_BITMAP);
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  daemon.notify(Type::throttle, Throttle{40});
  daemon.must(Type::dirty_log, DirtyLogSwitch{true});
  daemon.must(Type::dirty_sync, Empty{});
  daemon.must(Type::dirty_log, DirtyLogSwitch{false});
  daemon.must(Type::no_huge_pages, Empty{});
  daemon.notify(Type::outcome, OutcomeNotice{Outcome::stays, "cancelled"});
  daemon.notify(Type::outcome, OutcomeNotice{Outcome::left, ""});
  daemon.must(Type::dirty_sync, Empty{});
  CHECK(subject.recorder.calls() == std::vector<std::string>{"throttle 40", "dirty_log 1", "dirty_sync", "dirty_log 0",
                                                             "event 2 cancelled", "event 1 ", "dirty_sync"});
  subject.recorder.on_sync = [] { return -1; };
  CHECK(daemon.why_not(Type::dirty_sync, Empty{}) == "dirty_sync() refused");
  int fd = -1;
  unsigned char* const bits = md_guest_bitmap(subject.get(), "ram", &fd);
  REQUIRE(bits != nullptr);
  CHECK(fd >= 0);
  md_bitmap_set(bits, 4096 * 9, 4097);
  CHECK(bits[1] == 0x06);
}

TEST_CASE("GuestLibrary.arrived_memory_without_devices_may_start") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_EMPTY);
  daemon.notify(Type::outcome, OutcomeNotice{Outcome::arrived, ""});
  daemon.must(Type::start, Empty{});
  CHECK(subject.recorder.calls() == std::vector<std::string>{"event 3 ", "start"});
}

TEST_CASE("GuestLibrary.memory_given_back_is_punched_and_told_in_order") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  std::memset(subject.memory, 5, 3 * 4096);
  REQUIRE(md_guest_give_back(subject.get(), "ram", 4096, 4096) == 0);
  CHECK(subject.memory[4096] == std::byte{0});
  CHECK(subject.memory[8192] == std::byte{5});
  const auto notice = daemon.receive();
  REQUIRE(notice.has_value());
  const auto told = decode<GivenBack>(notice->body);
  REQUIRE(told.has_value());
  CHECK(told->offset == 4096);
  CHECK(told->length == 4096);
  CHECK(md_guest_give_back(subject.get(), "rom", 0, 4096) == -1);
  CHECK(subject.error() == "there is no block 'rom'");
  CHECK(md_guest_given_back(subject.get(), "ram", 1, 4096) == -1);
  CHECK(md_guest_given_back(subject.get(), "ram", 1 << 20, 4096) == -1);
  CHECK(subject.error() == "block 'ram': offset 0x100000 and length 0x1000 are past its end 0x100000");
}

TEST_CASE("GuestLibrary.blockers_are_told_to_every_daemon") {
  Subject subject;
  FakeDaemon daemon;
  CHECK(md_guest_add_blocker(subject.get(), "") == -1);
  const int early = md_guest_add_blocker(subject.get(), "a disk is passed through");
  REQUIRE(early >= 0);
  auto attached =
      std::async(std::launch::async, [&] { return md_guest_attach(subject.get(), daemon.path(), MD_RUNNING); });
  daemon.take_registration();
  auto told = daemon.receive();
  REQUIRE(told.has_value());
  CHECK(decode<AddBlocker>(told->body)->reason == "a disk is passed through");
  daemon.reply(*told, BlockerNumber{77});
  REQUIRE(attached.get() == 0);
  auto deleted = std::async(std::launch::async, [&] { return md_guest_delete_blocker(subject.get(), early); });
  told = daemon.receive();
  REQUIRE(told.has_value());
  CHECK(decode<BlockerNumber>(told->body)->number == 77);
  daemon.reply(*told, Empty{});
  CHECK(deleted.get() == 0);
  CHECK(md_guest_delete_blocker(subject.get(), early) == -1);
  auto refused = std::async(std::launch::async, [&] {
    const int number = md_guest_add_blocker(subject.get(), "too late");
    return std::pair(number, subject.error());
  });
  told = daemon.receive();
  REQUIRE(told.has_value());
  daemon.refuse(*told, "a migration runs");
  CHECK(refused.get() == std::pair(-1, std::string("the daemon refused: a migration runs")));
}

TEST_CASE("GuestLibrary.a_callback_may_ask_and_may_wait_for_a_thread_that_asks") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  int number = -1;
  subject.recorder.on_stop = [&] {
    // Its own request while the daemon's is under way, and another thread's that it waits for.
    if (md_guest_add_blocker(subject.get(), "in a callback") < 0) return -1;
    std::thread worker([&] { number = md_guest_add_blocker(subject.get(), "in a thread"); });
    worker.join();
    return number >= 0 ? 0 : -1;
  };
  daemon.ask(Type::stop, Empty{});
  for (const std::uint32_t n : {5U, 6U}) {
    const auto asked = daemon.receive();
    REQUIRE(asked.has_value());
    REQUIRE(asked->header.type == static_cast<std::uint16_t>(Type::add_blocker));
    daemon.reply(*asked, BlockerNumber{n});
  }
  const auto stopped = daemon.receive();
  REQUIRE(stopped.has_value());
  CHECK(FakeDaemon::sentence_of(*stopped).empty());
  CHECK(number >= 0);
}

TEST_CASE("GuestLibrary.callbacks_may_not_attach_or_detach") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  std::string attach_fault;
  std::string detach_fault;
  subject.recorder.on_stop = [&] {
    if (md_guest_attach(subject.get(), daemon.path(), MD_RUNNING) != 0) attach_fault = subject.error();
    if (md_guest_detach(subject.get()) != 0) detach_fault = subject.error();
    md_guest_free(subject.get());
    return 0;
  };
  daemon.must(Type::stop, Empty{});
  CHECK(attach_fault == "a callback cannot attach");
  CHECK(detach_fault == "a callback cannot detach");
}

TEST_CASE("GuestLibrary.a_refused_detach_leaves_the_guest_attached") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  auto detached = std::async(std::launch::async, [&] { return md_guest_detach(subject.get()); });
  const auto asked = daemon.receive();
  REQUIRE(asked.has_value());
  daemon.refuse(*asked, "a migration runs");
  CHECK(detached.get() == -1);
  CHECK(md_guest_is_attached(subject.get()) == 1);
  daemon.must(Type::stop, Empty{});
}

TEST_CASE("GuestLibrary.a_program_with_its_own_loop_gets_callbacks_where_it_dispatches") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING | MD_NO_THREAD);
  const auto readable = [&] {
    pollfd waits{md_guest_fd(subject.get()), POLLIN, 0};
    return ::poll(&waits, 1, 30000) == 1;
  };
  REQUIRE(md_guest_dispatch(subject.get()) == 0);
  CHECK(subject.recorder.calls().empty());
  std::thread::id where;
  subject.recorder.on_stop = [&] {
    where = std::this_thread::get_id();
    return 0;
  };
  daemon.ask(Type::stop, Empty{});
  REQUIRE(readable());
  REQUIRE(md_guest_dispatch(subject.get()) == 0);
  CHECK(where == std::this_thread::get_id());
  REQUIRE(daemon.receive().has_value());
  // A request that came while a call of the program's waited for its reply is kept, and the descriptor says so.
  auto added = std::async(std::launch::async, [&] { return md_guest_add_blocker(subject.get(), "waits"); });
  const auto asked = daemon.receive();
  REQUIRE(asked.has_value());
  daemon.ask(Type::start, Empty{});
  daemon.reply(*asked, BlockerNumber{1});
  REQUIRE(added.get() >= 0);
  REQUIRE(readable());
  REQUIRE(md_guest_dispatch(subject.get()) == 0);
  CHECK(subject.recorder.saw("start"));
  REQUIRE(daemon.receive().has_value());
  daemon.die();
  REQUIRE(readable());
  CHECK(md_guest_dispatch(subject.get()) == -1);
  CHECK(subject.recorder.saw("event 4 the daemon hung up"));
  CHECK(md_guest_fd(subject.get()) == -1);
  CHECK(md_guest_dispatch(subject.get()) == -1);
}
