// SPDX-License-Identifier: Apache-2.0
// cpr-transfer below the control socket: the channel, the intake of a new process, plans, and --incoming's words.
#include "daemon/incoming_words.hpp"
#include "daemon/machine/parked.hpp"
#include "daemon/migration/cpr_channel.hpp"
#include "daemon/migration/cpr_intake.hpp"
#include "daemon/migration/plan.hpp"
#include "tests/unit/catch.hpp"
#include "transports/connect.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <condition_variable>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <thread>

using namespace migrationd;
using namespace migrationd::migration;

namespace {

constexpr auto late = std::chrono::seconds(30);

std::unique_ptr<StopSource> new_stop() {
  auto stop = StopSource::make();
  REQUIRE(stop.has_value());
  return std::move(*stop);
}

UniqueFd memfd(std::uint64_t length) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(length)) == 0);
  return fd;
}

ino_t inode(int fd) {
  struct stat status {};
  REQUIRE(::fstat(fd, &status) == 0);
  return status.st_ino;
}

std::vector<cpr::NamedDescriptor> two_blocks() {
  std::vector<cpr::NamedDescriptor> out;
  out.push_back({"pc.rom", 0, memfd(2 * ram::page_size)});
  out.push_back({"ram0", 0, memfd(8 * ram::page_size)});
  return out;
}

std::size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

struct Ends {
  UniqueFd old_end, new_end;
  Ends() {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    old_end.reset(ends[0]);
    new_end.reset(ends[1]);
  }
};

stream::RamSetupBlock listed(std::string name, std::uint64_t pages) {
  stream::RamSetupBlock block;
  block.name = std::move(name);
  block.used_length = pages * ram::page_size;
  return block;
}

// The control thread of these tests: what was posted is done when the test asks for it.
class Reports final : public CprListener {
 public:
  CprIntake::Post post() {
    return [this](std::function<void()> job) {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
      rang_.notify_all();
    };
  }
  // The next report, done.
  void take_one() {
    std::unique_lock lock(mutex_);
    REQUIRE(rang_.wait_for(lock, late, [this] { return !jobs_.empty(); }));
    const auto job = std::move(jobs_.front());
    jobs_.erase(jobs_.begin());
    lock.unlock();
    job();
  }

  void cpr_arrived(std::uint64_t, Result<std::vector<cpr::NamedDescriptor>> descriptors) override {
    said.push_back(descriptors ? fmt::format("arrived {}", descriptors->size()) : descriptors.error().text());
  }
  void cpr_given_up(std::uint64_t) override { said.emplace_back("given up"); }

  std::vector<std::string> said;

 private:
  std::mutex mutex_;
  std::condition_variable rang_;
  std::vector<std::function<void()>> jobs_;
};

// The new process's socket, and an old process that connects.
struct Door {
  std::string path = fmt::format("/tmp/migrationd-cpr-test-{}", ::getpid());
  std::unique_ptr<StopSource> stop = new_stop();
  transports::IncomingTarget target;

  Door() : target(open()) {}
  transports::IncomingTarget open() const {
    struct NoFds final : transports::FdSource {
      Result<UniqueFd> take_named(std::string_view) override { return plan_error("none"); }
      Result<UniqueFd> open_fdset(std::string_view, int) override { return plan_error("none"); }
      Result<void> check_mapped_fdset(std::string_view, int, bool) override { return plan_error("none"); }
    } none;
    auto opened = transports::open_incoming(transports::UnixAddress{path}, none, {});
    REQUIRE(opened.has_value());
    return std::move(*opened);
  }
  UniqueFd connect() const {
    auto fd = transports::connect_unix(transports::UnixAddress{path});
    REQUIRE(fd.has_value());
    return std::move(*fd);
  }
};

std::string words(std::vector<std::string> given) {
  auto parsed = parse_incoming(given);
  if (!parsed) return parsed.error().text();
  return fmt::format("main {} cpr {}", parsed->main ? transports::to_string(*parsed->main) : "deferred",
                     parsed->cpr ? transports::to_string(*parsed->cpr) : "none");
}

}  // namespace

// --- the channel ----------------------------------------------------------------------------------------------------

TEST_CASE("CprChannel.brings_names_ids_and_the_same_files") {
  Ends ends;
  const auto stop = new_stop();
  auto given = two_blocks();
  given.push_back({"vfio", 7, UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC))});
  REQUIRE(bool(send_descriptors(ends.old_end.get(), given, *stop)));
  auto received = receive_descriptors(ends.new_end.get(), *stop, {});
  REQUIRE(received.has_value());
  REQUIRE(received->entries.size() == given.size());
  for (std::size_t i = 0; i < given.size(); ++i) {
    CHECK(received->entries[i].name == given[i].name);
    CHECK(received->entries[i].id == given[i].id);
    CHECK(inode(received->entries[i].fd.get()) == inode(given[i].fd.get()));
  }
  ends.new_end.reset();
  CHECK(bool(await_new_process(ends.old_end.get(), *stop)));
}

TEST_CASE("CprChannel.a_new_process_that_ends_before_it_read_is_told_apart") {
  Ends ends;
  const auto stop = new_stop();
  REQUIRE(bool(send_descriptors(ends.old_end.get(), two_blocks(), *stop)));
  ends.new_end.reset();
  const auto ended = await_new_process(ends.old_end.get(), *stop);
  REQUIRE_FALSE(bool(ended));
  CHECK(ended.error().text() == "cpr channel: the new process ended before it had read the list of descriptors");
}

TEST_CASE("CprChannel.an_old_process_that_never_half_closes_is_not_waited_for_for_ever") {
  const Ends ends;
  const auto stop = new_stop();
  ByteWriter list;
  cpr::encode_header(list);
  list.u8(0);
  REQUIRE(bool(transports::send_bytes(ends.old_end.get(), list.view(), *stop)));
  const auto received = receive_descriptors(ends.new_end.get(), *stop, std::chrono::steady_clock::now());
  REQUIRE_FALSE(received.has_value());
  CHECK(received.error().text() == "cpr channel: the old process did not end its side behind the list");
}

TEST_CASE("CprChannel.who_closes_without_a_byte_is_a_probe") {
  Ends ends;
  const auto stop = new_stop();
  ends.old_end.reset();
  const auto received = receive_descriptors(ends.new_end.get(), *stop, {});
  REQUIRE(received.has_value());
  CHECK(received->untouched);
}

// --- the intake -----------------------------------------------------------------------------------------------------

TEST_CASE("CprIntake.holds_the_connection_until_it_is_destroyed") {
  const Door door;
  Reports reports;
  auto intake = CprIntake::start(*const_cast<Door&>(door).target.listener(), reports, reports.post());
  REQUIRE(intake.has_value());
  { const UniqueFd probe = door.connect(); }
  const UniqueFd old_end = door.connect();
  REQUIRE(bool(send_descriptors(old_end.get(), two_blocks(), *door.stop)));
  reports.take_one();
  CHECK(reports.said == std::vector<std::string>{"arrived 2"});
  intake->reset();
  CHECK(bool(await_new_process(old_end.get(), *door.stop)));
}

TEST_CASE("CprIntake.goes_on_listening_after_a_wrong_list_and_after_an_old_process_that_gave_up") {
  const std::size_t before = open_descriptors();
  {
    Door door;
    Reports reports;
    auto intake = CprIntake::start(*door.target.listener(), reports, reports.post());
    REQUIRE(intake.has_value());
    UniqueFd old_end = door.connect();
    REQUIRE(bool(transports::send_bytes(old_end.get(), as_bytes("QCPX"), *door.stop)));
    reports.take_one();
    CHECK(transports::await_hangup(old_end.get(), *door.stop).has_value());
    old_end = door.connect();
    REQUIRE(bool(send_descriptors(old_end.get(), two_blocks(), *door.stop)));
    reports.take_one();
    old_end.reset();
    reports.take_one();
    old_end = door.connect();
    REQUIRE(bool(send_descriptors(old_end.get(), {}, *door.stop)));
    reports.take_one();
    CHECK(reports.said == std::vector<std::string>{"cpr channel: Not a migration stream (bad magic 51435058)",
                                                   "arrived 2", "given up", "arrived 0"});
  }
  CHECK(open_descriptors() == before);
}

// --- the parked machine ---------------------------------------------------------------------------------------------

TEST_CASE("ParkedReceiver.takes_the_memory_over_and_hands_on_the_same_list") {
  auto given = two_blocks();
  given.insert(given.begin(), {"vfio", 7, UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC))});
  std::vector<ino_t> inodes;
  for (const auto& entry : given) inodes.push_back(inode(entry.fd.get()));
  const char byte = 9;
  REQUIRE(::pwrite(given[2].fd.get(), &byte, 1, ram::page_size) == 1);

  ParkedReceiver receiver;
  REQUIRE(bool(receiver.take_descriptors(std::move(given))));
  REQUIRE(bool(receiver.begin({})));
  // A block may be smaller than its file: it can grow.
  const std::array blocks{listed("ram0", 8), listed("pc.rom", 1)};
  auto machine = receiver.prepare_memory(blocks, 2);
  REQUIRE(machine.has_value());
  CHECK((*machine)->ram().at(0).engine()[ram::page_size] == std::byte{9});
  CHECK((*machine)->ram().at(1).length() == ram::page_size);

  const auto shared = (*machine)->share_descriptors();
  REQUIRE(shared.has_value());
  REQUIRE(shared->size() == 3);
  for (std::size_t i = 0; i < 3; ++i) CHECK(inode((*shared)[i].fd.get()) == inodes[i]);
  CHECK((*shared)[0].name == "vfio");
  CHECK((*shared)[0].id == 7);
  CHECK((*shared)[2].name == "ram0");
}

TEST_CASE("ParkedReceiver.refuses_blocks_whose_descriptor_is_missing_small_twice_or_no_memory") {
  const auto told = [](std::vector<cpr::NamedDescriptor> given, std::vector<stream::RamSetupBlock> blocks) {
    ParkedReceiver receiver;
    REQUIRE(bool(receiver.take_descriptors(std::move(given))));
    const auto machine = receiver.prepare_memory(blocks, 2);
    REQUIRE_FALSE(machine.has_value());
    return machine.error().text();
  };
  CHECK(told(two_blocks(), {listed("ram1", 1)}) ==
        "block 'ram1': no descriptor of that name came over the cpr channel");
  CHECK(told(two_blocks(), {listed("ram0", 9)}) ==
        "block 'ram0': the descriptor's file has 32768 bytes, the block 36864");
  auto same = two_blocks();
  same.push_back({"ram1", 0, UniqueFd(::fcntl(same[1].fd.get(), F_DUPFD_CLOEXEC, 0))});
  CHECK(told(std::move(same), {listed("ram0", 8), listed("ram1", 8)}) ==
        "block 'ram1': its memory is the same file as another block's");
  std::vector<cpr::NamedDescriptor> wrong;
  wrong.push_back({"ram0", 0, UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))});
  CHECK(told(std::move(wrong), {listed("ram0", 1)}) ==
        "block 'ram0': the descriptor is no shared memory (a memfd, or a file of tmpfs or hugetlbfs)");
  // An id is part of the name: that one is a device's.
  std::vector<cpr::NamedDescriptor> other_id;
  other_id.push_back({"ram0", 1, memfd(ram::page_size)});
  CHECK(told(std::move(other_id), {listed("ram0", 1)}) ==
        "block 'ram0': no descriptor of that name came over the cpr channel");
}

TEST_CASE("ParkedMachine.that_came_by_a_stream_hands_its_own_blocks_over") {
  ParkedReceiver receiver;
  REQUIRE(bool(receiver.begin({})));
  const std::array blocks{listed("ram0", 8), listed("pc.rom", 1)};
  auto machine = receiver.prepare_memory(blocks, 2);
  REQUIRE(machine.has_value());
  const auto shared = (*machine)->share_descriptors();
  REQUIRE(shared.has_value());
  REQUIRE(shared->size() == 2);
  CHECK((*shared)[0].name == "pc.rom");
  CHECK((*shared)[1].name == "ram0");
  CHECK(inode((*shared)[1].fd.get()) == inode((*machine)->ram().at(0).fd()));
  // The next holder may make a block as large as it can become.
  CHECK(::ftruncate((*shared)[0].fd.get(), 2 * ram::page_size) == 0);
}

// --- plans ----------------------------------------------------------------------------------------------------------

TEST_CASE("Plan.cpr_transfer_is_refused_in_QEMUs_words") {
  qmp::MigrationParameters parameters;
  parameters.mode = qmp::MigMode::cpr_transfer;
  const transports::Address main = transports::UnixAddress{"/m"};
  const auto told = [&](qmp::Capabilities capabilities, const transports::Address& address, bool channel) {
    const auto plan = make_source_plan(capabilities, parameters, address, channel);
    return plan ? std::string("planned") : plan.error().text();
  };
  CHECK(told({}, main, false) == "missing 'cpr' migration channel");
  CHECK(told({}, transports::FileAddress{"/f"}, false) == "Migration requires streamable transport (eg unix)");
  qmp::Capabilities mapped;
  mapped.set(qmp::Capability::mapped_ram, true);
  CHECK(told(mapped, main, true) == "Migration requires seekable transport (e.g. file)");
  CHECK(told({}, main, true) == "planned");
  qmp::Capabilities postcopy;
  postcopy.set(qmp::Capability::postcopy_ram, true);
  // A conflict is told later, behind the machine's own reasons.
  CHECK(told(postcopy, main, true) == "planned");
  CHECK(check_cpr_conflicts(postcopy).error().text() == "Cannot use postcopy with CPR");
  CHECK(bool(check_cpr_conflicts({})));
  const auto plan = make_source_plan({}, parameters, main, true);
  CHECK(plan->by_descriptors);
  CHECK(plan->stopped_from_start);
  // In the normal mode a second channel is nothing.
  CHECK_FALSE(make_source_plan({}, {}, main, true)->by_descriptors);
}

TEST_CASE("Plan.a_new_process_listens_where_the_old_one_can_come") {
  const auto told = [](const transports::Address& address) {
    const auto plan = make_destination_plan({}, {}, address, true);
    return plan ? std::string("planned") : plan.error().text();
  };
  CHECK(told(transports::UnixAddress{"/m"}) == "planned");
  CHECK(told(transports::FileAddress{"/f"}) == "Migration requires streamable transport (eg unix)");
  CHECK(told(transports::InetAddress{"h", "0"}) ==
        "cpr-transfer: the old process must know the main channel's port: it cannot be 0");
  CHECK(make_destination_plan({}, {}, transports::UnixAddress{"/m"}, true)->memory_is_here);
  qmp::Capabilities postcopy;
  postcopy.set(qmp::Capability::postcopy_ram, true);
  CHECK(make_destination_plan(postcopy, {}, transports::UnixAddress{"/m"}, true).error().text() ==
        "Cannot use postcopy with CPR");
}

// --- --incoming -----------------------------------------------------------------------------------------------------

TEST_CASE("IncomingWords.take_every_form_in_any_order") {
  const std::string json = R"({"channel-type":"cpr","addr":{"transport":"socket","type":"unix","path":"/c"}})";
  const std::string list = "cpr,addr.transport=socket,addr.type=unix,addr.path=/c";
  const std::string both = "main unix:/m cpr unix:/c";
  CHECK(words({"unix:/m", json}) == both);
  CHECK(words({json, "unix:/m"}) == both);
  CHECK(words({list, "unix:/m"}) == both);
  CHECK(words({"channel-type=" + list, "unix:/m"}) == both);
  CHECK(words({"main,addr.transport=socket,addr.type=unix,addr.path=/m", list}) == both);
  CHECK(words({"defer", list}) == "main deferred cpr unix:/c");
  CHECK(words({list, "defer"}) == "main deferred cpr unix:/c");
  CHECK(words({"defer"}) == "main deferred cpr none");
  CHECK(words({}) == "main deferred cpr none");
  CHECK(words({"cpr,addr.transport=socket,addr.type=unix,addr.path=/a,,b", "tcp:h:1"}) == "main tcp:h:1 cpr unix:/a,b");
}

TEST_CASE("IncomingWords.a_later_value_of_a_channel_replaces_an_earlier_one") {
  CHECK(words({"unix:/a", "unix:/b"}) == "main unix:/b cpr none");
  CHECK(words({"unix:/a", "defer"}) == "main deferred cpr none");
  CHECK(words({"defer", "unix:/a"}) == "main unix:/a cpr none");
  CHECK(words({"cpr,addr.transport=socket,addr.type=unix,addr.path=/a",
               "cpr,addr.transport=socket,addr.type=unix,addr.path=/b"}) == "main deferred cpr unix:/b");
}

TEST_CASE("IncomingWords.values_of_a_list_have_the_types_that_they_have_in_JSON") {
  CHECK(words({"main,addr.transport=file,addr.filename=/f,addr.offset=4096"}) == "main file:/f,offset=0x1000 cpr none");
  CHECK(words({"main,addr.transport=exec,addr.args.0=/bin/cat,addr.args.1=/f"}) ==
        words({R"({"channel-type":"main","addr":{"transport":"exec","args":["/bin/cat","/f"]}})"}));
  auto parsed = parse_incoming(std::vector<std::string>{
      "main,addr.transport=socket,addr.type=inet,addr.host=h,addr.port=1,addr.ipv6=off,addr.to=9"});
  REQUIRE(parsed.has_value());
  const auto& inet = std::get<transports::InetAddress>(*parsed->main);
  CHECK(inet.ipv6 == false);
  CHECK(inet.to == std::uint16_t{9});
}

TEST_CASE("IncomingWords.what_is_wrong_is_told") {
  CHECK(words({"foo:bar"}) == "--incoming: unknown migration protocol: foo:bar");
  CHECK(words({"{"}) == "--incoming: not a URI and not JSON: {");
  CHECK(words({"cpr,addr.transport=socket,x"}) == "--incoming: 'x' is neither KEY=VALUE nor a URI");
  CHECK(words({"cpr,addr=1,addr.path=/x"}) == "--incoming: 'addr.path' does not suit the other keys");
  CHECK(words({"cpr,addr.path=/x,addr=1"}) == "--incoming: 'addr' does not suit the other keys");
  CHECK(words({"cpr,addr..path=/x"}) == "--incoming: 'addr..path' is no key");
  CHECK(words({"cpr,addr.args.7=/x"}) == "--incoming: 'addr.args.7' does not suit the other keys");
  CHECK(words({"main,addr.offset=-1"}) == "--incoming: 'offset': '-1' is not a number");
  CHECK(words({"main,addr.ipv4=maybe"}) == "--incoming: 'ipv4': on or off, not 'maybe'");
  CHECK(words({"third,addr.transport=exec"}).find("--incoming: ") == 0);
  CHECK(words({""}).find("--incoming: ") == 0);
}
