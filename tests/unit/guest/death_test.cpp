// SPDX-License-Identifier: Apache-2.0
// Daemons that die at every step, lie, or send rubbish: the guest lives, says why, and attaches to the next one.
#include "tests/unit/guest/recorder.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

using namespace migrationd;
using namespace migrationd::guest;
using namespace migrationd::guest::test;

namespace {

// After whatever happened: a new daemon gets everything again.
void attaches_again(Subject& subject) {
  FakeDaemon next;
  const Registration told = attach(subject.get(), next, MD_RUNNING);
  CHECK(told.blocks.size() == 1);
  CHECK(told.devices.size() == 1);
  next.must(Type::stop, Empty{});
  CHECK(detach(subject.get(), next) == 0);
}

// Sends bytes that are no packet of a daemon, and returns why the guest hung up.
std::string rubbish(const std::function<void(FakeDaemon&)>& send) {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  send(daemon);
  // It says why and hangs up; answers to requests before may come first.
  std::string farewell;
  while (const auto last = daemon.receive()) {
    if (const std::string why = FakeDaemon::sentence_of(*last); !why.empty()) farewell = why;
  }
  CHECK(subject.recorder.wait_for("event 4 "));
  attaches_again(subject);
  return farewell;
}

}  // namespace

TEST_CASE("GuestLife.a_daemon_that_dies_while_it_is_told_is_an_error_and_no_more") {
  // HELLO, block, device: after each of them, and before the first.
  for (std::size_t step = 0; step <= 3; ++step) {
    INFO(step);
    Subject subject;
    FakeDaemon daemon;
    auto attached = std::async(std::launch::async, [&] {
      const int status = md_guest_attach(subject.get(), daemon.path(), MD_RUNNING);
      return std::pair(status, subject.error());
    });
    daemon.take_registration(step);
    const auto [status, why] = attached.get();
    CHECK(status == -1);
    CHECK(why.find("the daemon hung up") != std::string::npos);
    CHECK(md_guest_is_attached(subject.get()) == 0);
    CHECK(!subject.recorder.saw("event"));
    attaches_again(subject);
  }
}

TEST_CASE("GuestLife.a_daemon_that_refuses_is_heard_although_it_hung_up") {
  Subject subject;
  FakeDaemon daemon;
  auto attached = std::async(std::launch::async, [&] {
    const int status = md_guest_attach(subject.get(), daemon.path(), MD_RUNNING);
    return std::pair(status, subject.error());
  });
  daemon.accept();
  daemon.send_raw(packet(refusal, 1, Refusal{"there is a guest already"}));
  daemon.die();
  const auto [status, why] = attached.get();
  CHECK(status == -1);
  CHECK(why.find("there is a guest already") != std::string::npos);
}

TEST_CASE("GuestLife.a_daemon_of_another_version_is_refused") {
  Subject subject;
  FakeDaemon daemon;
  auto attached = std::async(std::launch::async, [&] {
    const int status = md_guest_attach(subject.get(), daemon.path(), MD_RUNNING);
    return std::pair(status, subject.error());
  });
  daemon.accept();
  const auto hello = daemon.receive();
  daemon.reply(*hello, Welcome{2, "newer", 5000});
  const auto [status, why] = attached.get();
  CHECK(status == -1);
  CHECK(why.find("the daemon speaks version 2, which was not offered") != std::string::npos);
}

TEST_CASE("GuestLife.a_daemon_that_dies_in_a_callback_is_told_afterwards") {
  for (const Type type : {Type::stop, Type::dirty_sync}) {
    Subject subject(MD_TRACK_BITMAP);
    FakeDaemon daemon;
    Signal entered;
    Signal dead;
    const auto body = [&] {
      entered.set();
      return dead.wait() ? 0 : -1;
    };
    subject.recorder.on_stop = subject.recorder.on_sync = body;
    attach(subject.get(), daemon, MD_RUNNING);
    daemon.ask(type, Empty{});
    REQUIRE(entered.wait());
    daemon.die();
    dead.set();
    CHECK(subject.recorder.wait_for("event 4 the daemon hung up"));
    subject.recorder.on_stop = nullptr;
    attaches_again(subject);
  }
}

TEST_CASE("GuestLife.a_call_that_waits_for_a_daemon_that_dies_comes_back") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  auto detached = std::async(std::launch::async, [&] { return md_guest_detach(subject.get()); });
  REQUIRE(daemon.receive().has_value());
  daemon.die();
  CHECK(detached.get() == 0);  // there is nothing left to be attached to
  // A blocker that the daemon could not be told is kept for the next one.
  FakeDaemon second;
  attach(subject.get(), second, MD_RUNNING);
  auto added = std::async(std::launch::async, [&] { return md_guest_add_blocker(subject.get(), "kept"); });
  REQUIRE(second.receive().has_value());
  second.die();
  CHECK(added.get() >= 0);
  CHECK(subject.recorder.wait_for("event 4 "));
  FakeDaemon third;
  auto attached =
      std::async(std::launch::async, [&] { return md_guest_attach(subject.get(), third.path(), MD_RUNNING); });
  third.take_registration();
  const auto told = third.receive();
  REQUIRE(told.has_value());
  CHECK(decode<AddBlocker>(told->body)->reason == "kept");
  third.reply(*told, BlockerNumber{0});
  CHECK(attached.get() == 0);
}

TEST_CASE("GuestLife.memory_is_given_back_also_without_a_daemon") {
  Subject subject;
  FakeDaemon daemon;
  REQUIRE(md_guest_give_back(subject.get(), "ram", 0, 4096) == 0);
  attach(subject.get(), daemon, MD_RUNNING);
  daemon.die();
  CHECK(subject.recorder.wait_for("event 4 "));
  REQUIRE(md_guest_give_back(subject.get(), "ram", 0, 4096) == 0);
}

TEST_CASE("GuestLife.a_guest_that_is_freed_while_attached_hangs_up") {
  auto subject = std::make_unique<Subject>();
  FakeDaemon daemon;
  attach(subject->get(), daemon, MD_RUNNING);
  auto freed = std::async(std::launch::async, [&] { subject.reset(); });
  const auto asked = daemon.receive();
  REQUIRE(asked.has_value());
  daemon.refuse(*asked, "a migration runs");
  CHECK(!daemon.receive().has_value());
  freed.get();
}

TEST_CASE("GuestLife.rubbish_ends_the_connection_and_its_sender_is_told") {
  const auto raw = [](std::uint16_t type, std::uint32_t serial, std::string_view body = {}) {
    return [=](FakeDaemon& daemon) {
      ByteWriter out;
      encode_header({type, serial}, out);
      out.text(body);
      daemon.send_raw(out.view());
    };
  };
  CHECK(rubbish(raw(99, 1)) == "message: type 0x63 is unknown");
  CHECK(rubbish([](FakeDaemon& daemon) { daemon.send_raw(as_bytes("short")); }) ==
        "message: 5 bytes are less than a header");
  CHECK(rubbish(raw(2, 1)).find("ADD_BLOCK: came with 0 descriptors") == 0);
  CHECK(rubbish(raw(1, 1)) == "HELLO: is no message of a daemon");
  CHECK(rubbish(raw(0x8005, 9)) == "reply to READY: nobody asked for it");
  CHECK(rubbish(raw(36, 1)) == "LOAD: came with 0 descriptors, not 1 to 1");
  CHECK(rubbish(raw(37, 1, "\x09")) == "WATCH: purpose: 9 is none of 1 to 3");
  CHECK(rubbish(raw(32, 1, "x")) == "message without body: 1 bytes too many");
  CHECK(rubbish(raw(39, 1, "\x02")) == "DIRTY_LOG: on: 2 is none of 0 to 1");
  CHECK(rubbish(raw(34, 0, "\x7f")).empty());  // a notice has no answer
  CHECK(rubbish([](FakeDaemon& daemon) {
          const UniqueFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
          const int fds[] = {file.get(), file.get(), file.get(), file.get(), file.get()};
          Bytes bytes = packet(32, 1, Empty{});
          iovec part{bytes.data(), bytes.size()};
          alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof fds)> control{};
          msghdr message{};
          message.msg_iov = &part;
          message.msg_iovlen = 1;
          message.msg_control = control.data();
          message.msg_controllen = control.size();
          cmsghdr* const rights = CMSG_FIRSTHDR(&message);
          rights->cmsg_level = SOL_SOCKET;
          rights->cmsg_type = SCM_RIGHTS;
          rights->cmsg_len = CMSG_LEN(sizeof fds);
          std::memcpy(CMSG_DATA(rights), fds, sizeof fds);
          REQUIRE(::sendmsg(daemon.socket(), &message, MSG_NOSIGNAL) > 0);
        }).find("more than 4 descriptors") == 0);
}

TEST_CASE("GuestLife.a_second_request_before_the_first_was_answered_ends_the_connection") {
  Subject subject;
  FakeDaemon daemon;
  // Whoever waits reads: the callback, for the answer to its own request.
  subject.recorder.on_stop = [&] { return md_guest_add_blocker(subject.get(), "asks") < 0 ? -1 : 0; };
  attach(subject.get(), daemon, MD_RUNNING);
  daemon.ask(Type::stop, Empty{});
  REQUIRE(daemon.receive().has_value());
  daemon.ask(Type::dirty_sync, Empty{});
  const auto farewell = daemon.receive();
  REQUIRE(farewell.has_value());
  CHECK(FakeDaemon::sentence_of(*farewell) == "DIRTY_SYNC: came before the last request was answered");
  CHECK(subject.recorder.wait_for("event 4 "));
}

TEST_CASE("GuestLife.throttling_takes_one_place_and_other_notices_are_bounded") {
  Subject subject;
  FakeDaemon daemon;
  subject.recorder.on_stop = [&] { return md_guest_add_blocker(subject.get(), "asks") < 0 ? -1 : 0; };
  attach(subject.get(), daemon, MD_RUNNING);
  daemon.ask(Type::stop, Empty{});
  auto asked = daemon.receive();
  REQUIRE(asked.has_value());
  for (int i = 0; i < 1000; ++i) daemon.notify(Type::throttle, Throttle{static_cast<std::uint8_t>(i % 100)});
  daemon.reply(*asked, BlockerNumber{1});
  REQUIRE(daemon.receive().has_value());
  daemon.must(Type::start, Empty{});
  CHECK(subject.recorder.calls() == std::vector<std::string>{"stop", "throttle 99", "start"});
  daemon.ask(Type::stop, Empty{});
  REQUIRE(daemon.receive().has_value());
  // The guest may hang up before the last is sent.
  for (int i = 0; i < 100; ++i) {
    const Bytes notice = packet(42, 0, OutcomeNotice{Outcome::stays, "flood"});
    if (!send_packet(daemon.socket(), notice)) break;
  }
  while (daemon.receive()) {
  }
  CHECK(subject.recorder.wait_for("event 4 OUTCOME: too many notices at a time"));
}

TEST_CASE("GuestLife.a_forked_child_cannot_end_its_parents_connection") {
  Subject subject;
  FakeDaemon daemon;
  attach(subject.get(), daemon, MD_RUNNING);
  const pid_t child = ::fork();
  if (child == 0) {
    bool as_promised = md_guest_detach(subject.get()) == -1 && md_guest_give_back(subject.get(), "ram", 0, 4096) == -1;
    as_promised = as_promised && md_guest_add_blocker(subject.get(), "of the child") == -1;
    md_guest_free(subject.get());
    ::_exit(as_promised ? 0 : 1);
  }
  REQUIRE(child > 0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  // Nothing was said meanwhile: the next word is the answer to this.
  daemon.must(Type::stop, Empty{});
  CHECK(detach(subject.get(), daemon) == 0);
}
