// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/source.hpp"

#include "base/closed_by_peer.hpp"
#include "base/log.hpp"
#include "daemon/migration/cpr_channel.hpp"
#include "daemon/migration/multifd_rules.hpp"
#include "daemon/migration/postcopy_source.hpp"
#include "daemon/migration/precopy_sender.hpp"
#include "daemon/migration/rdma_connections.hpp"
#include "protocol/stream/commands.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/return_path.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/sink_mapped.hpp"
#include "ram/sink_multifd.hpp"
#include "ram/sink_rdma.hpp"
#include "ram/sink_stream.hpp"
#include "transports/positional_file.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>
#include <vector>

namespace migrationd::migration {
namespace {

using qmp::MigrationStatus;

// Who reads the return path ends with the stop; the last word may still be in the socket.
bool has_unread_success(const transports::Channel& channel) {
  ByteWriter expected;
  stream::encode_return_message(expected, stream::reply::Shut{0});
  std::array<std::byte, 64> unread{};
  const ssize_t count = ::recv(channel.readable_fd(), unread.data(), unread.size(), MSG_PEEK | MSG_DONTWAIT);
  if (count <= 0) return false;
  // The answer to the PING may be unread, too.
  const ByteView wanted = expected.view();
  constexpr std::size_t header_bytes = 4;  // u16 type, u16 length
  for (ByteView rest = ByteView(unread).first(static_cast<std::size_t>(count)); rest.size() >= wanted.size();) {
    if (std::equal(wanted.begin(), wanted.end(), rest.begin())) return true;
    const std::size_t message = header_bytes + load_be<std::uint16_t>(rest.data() + 2);
    rest = rest.subspan(std::min(message, rest.size()));
  }
  return false;
}

// Its reader has ended before the peer's last word came.
PeerAnswer read_last_word(const transports::Channel& channel, std::chrono::milliseconds wait) {
  const auto deadline = Clock::now() + wait;
  Bytes said;
  while (true) {
    for (auto message = stream::decode_return_message(said); message.is_ready();
         message = stream::decode_return_message(said)) {
      if (const auto* shut = std::get_if<stream::reply::Shut>(&message.value()))
        return shut->value == 0 ? PeerAnswer::success : PeerAnswer::failure;
      said.erase(said.begin(), said.begin() + static_cast<std::ptrdiff_t>(message.consumed()));
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    pollfd readable{channel.readable_fd(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&readable, 1, static_cast<int>(left.count())) <= 0) return PeerAnswer::lost;
    std::array<std::byte, 256> more{};
    const ssize_t count = ::recv(readable.fd, more.data(), more.size(), MSG_DONTWAIT);
    if (count <= 0) return PeerAnswer::lost;
    said.insert(said.end(), more.begin(), more.begin() + count);
  }
}

// The first PING of a stream; the value is only echoed (stream.md section 8).
constexpr std::uint32_t ping_after_open = 1;
// Of all workers on a mapped-ram file together, and of one at least; each is 4 MiB at most.
constexpr std::size_t writes_in_flight = 8;
constexpr std::size_t writes_per_worker = 2;
// Everything is sent, but the destination has not acknowledged the switchover: look again after this.
constexpr auto acknowledge_poll = std::chrono::milliseconds(5);

}  // namespace

MigrationSource::MigrationSource(SourcePlan plan, transports::OutgoingTarget target,
                                 std::optional<stream::Uuid> own_uuid, Machine& machine, RunControl& run_control,
                                 const LiveLimits& limits, Progress& progress, MoverEvents& events, StopSource& stop,
                                 Gate& continue_gate, PostcopyControl& postcopy_control)
    : plan_(std::move(plan)),
      target_(std::move(target)),
      own_uuid_(own_uuid),
      machine_(machine),
      run_control_(run_control),
      limits_(limits),
      progress_(progress),
      events_(events),
      stop_(stop),
      continue_gate_(continue_gate),
      postcopy_control_(postcopy_control) {}

MigrationSource::~MigrationSource() = default;

SourceOutcome MigrationSource::run() {
  auto result = run_phases();
  // A channel's thread raised the stop, and knows why.
  if (!result && result.error().is_cancelled() && multifd_) {
    if (auto failure = multifd_->failure()) result = std::move(*failure);
  }
  if (!result && result.error().is_cancelled() && sender_ && mapped_sink_ != nullptr) {
    if (auto failure = mapped_sink_->failure()) result = std::move(*failure);
  }
  return settle(std::move(result));
}

Result<void> MigrationSource::run_phases() {
  if (plan_.stopped_from_start) return run_stopped_phases();
  MD_CHECK(connect());
  MD_CHECK(open_stream());
  MD_CHECK(set_up_memory());
  MD_CHECK(iterate());
  MD_CHECK(stop_machine());
  MD_CHECK(wait_in_pre_switchover());
  if (postcopy_ && postcopy_control_.wanted()) return go_by_postcopy();  // also when that was said a moment ago
  MD_CHECK(send_rest());
  MD_CHECK(send_devices());
  MD_CHECK(send_end());
  return await_answer();
}

Result<void> MigrationSource::run_stopped_phases() {
  if (plan_.by_descriptors) MD_CHECK(hand_over_descriptors());
  MD_CHECK(connect());
  cpr_.reset();
  MD_CHECK(stop_machine());
  MD_CHECK(open_stream());
  MD_CHECK(set_up_memory());
  if (sender_->remaining_bytes() > 0) MD_CHECK(iterate());
  MD_CHECK(wait_in_pre_switchover());
  MD_CHECK(send_rest());
  MD_CHECK(send_devices());
  MD_CHECK(send_end());
  return await_answer();
}

// The guest runs on meanwhile.
Result<void> MigrationSource::hand_over_descriptors() {
  if (!cpr_) return plan_error("missing 'cpr' migration channel");
  MD_TRY(auto descriptors, machine_.share_descriptors());
  std::move(cpr_->extra.begin(), cpr_->extra.end(), std::back_inserter(descriptors));
  MD_CHECK(send_descriptors(cpr_->socket.get(), descriptors, stop_));
  return await_new_process(cpr_->socket.get(), stop_);
}

Result<void> MigrationSource::connect() {
  if (plan_.mapped) {
    MD_TRY(transports::MappedFile file, target_.take_file(stop_));
    file_ = file.stream.get();
    page_fd_ = std::move(file.pages);
    channel_ = std::move(file.stream);
  } else if (plan_.rdma) {
    MD_CHECK(connect_over_rdma());
  } else {
    MD_TRY(channel_, target_.connect(stop_));
  }
  // Only now is known what an fd: is: a pipe or a file cannot answer.
  plan_.return_path = plan_.return_path && channel_->bidirectional() && !channel_->is_file();
  plan_.switchover_ack = plan_.switchover_ack && plan_.return_path;
  writer_ = std::make_unique<transports::BufferedWriter>(*channel_);
  if (plan_.postcopy && plan_.return_path) {
    MD_TRY(postcopy_,
           PostcopySource::make(*plan_.postcopy, machine_, limits_, progress_, events_, stop_, postcopy_control_));
    if (plan_.postcopy->at_once) postcopy_control_.start();
    if (postcopy_->preempt_at_once()) {
      MD_TRY(preempt_, target_.connect(stop_));
    }
  } else if (plan_.postcopy && plan_.postcopy->at_once) {
    return plan_error(
        "Instant resume needs a destination that can ask for pages: this descriptor carries bytes one way");
  }
  return plan_.multifd ? connect_channels() : Result<void>();
}

Result<void> MigrationSource::connect_over_rdma() {
  const auto& address = std::get<transports::RdmaAddress>(target_.address());
  const RdmaWishes wishes{plan_.rdma->pin_all, plan_.return_path, plan_.rdma->queue_pairs};
  MD_TRY(auto channel, connect_rdma(*target_.rdma(), address.inet, wishes, stop_));
  rdma_ = channel.get();
  channel_ = std::move(channel);
  return {};
}

// After the main connection, for QEMU 7.2 takes the first for the main one; and before its first byte, so that a
// destination sees all of them at once.
Result<void> MigrationSource::connect_channels() {
  const MultifdPlan& plan = *plan_.multifd;
  std::vector<std::unique_ptr<transports::Channel>> channels;
  for (unsigned number = 0; number < plan.channels; ++number) {
    auto channel = target_.connect(stop_);
    if (!channel) return std::move(channel).error().with(fmt::format("multifd channel {}", number));
    channels.push_back(std::move(*channel));
  }
  const MachineConfiguration& machine = machine_.configuration();
  std::optional<stream::Uuid> uuid = machine.multifd_uuid ? machine.multifd_uuid : machine.uuid;
  if (!uuid) uuid = own_uuid_;
  ram::MultifdSenderOptions options{plan.method, plan.level};
  options.zero_pages_in_packets =
      multifd_rules(machine.machine_name, plan.zero_pages).zeros == ram::MultifdZeros::in_packets;
  options.zero_copy = plan.zero_copy;
  MD_TRY(multifd_, ram::MultifdSender::start(std::move(channels), uuid.value_or(stream::Uuid{}), options,
                                             machine_.ram(), stop_, progress_.threads));
  return {};
}

void MigrationSource::publish_channels() noexcept {
  if (rdma_ != nullptr) progress_.rdma.take(rdma_->totals());
  if (!multifd_) return;
  progress_.multifd_bytes = multifd_->bytes_sent();
  progress_.missed_zero_copy = multifd_->missed_zero_copy();
}

Result<void> MigrationSource::open_stream() {
  const MachineConfiguration& machine = machine_.configuration();
  stream::Configuration configuration;
  configuration.machine_name = machine.machine_name;
  configuration.target_page_bits = machine.target_page_bits;
  // A received UUID goes on as it came, so that the stream stays what it was.
  configuration.uuid = machine.uuid;
  if (!configuration.uuid && plan_.validate_uuid) configuration.uuid = own_uuid_;

  if (plan_.mapped) configuration.capabilities = {std::string(stream::capability_mapped_ram)};
  if (plan_.ignore_shared) configuration.capabilities = {std::string(stream::capability_ignore_shared)};

  ByteWriter out;
  stream::encode_header(out);
  stream::encode_configuration(out, configuration);
  if (plan_.return_path) {
    stream::encode_command(out, stream::command::OpenReturnPath{});
    stream::encode_command(out, stream::command::Ping{ping_after_open});
  }
  if (postcopy_) stream::encode_command(out, postcopy_->advise());
  MD_CHECK(writer_->append(out.view()));
  auto sent = writer_->flush();
  // Made while the destination reads; also when it does not, for it may say why.
  if (plan_.return_path) {
    MD_TRY(return_path_, ReturnPathReader::start(*channel_, stop_, postcopy_.get()));
  }
  return sent;
}

Result<void> MigrationSource::set_up_memory() {
  const SinkMaker sink_maker = [this](ram::SendCounters& counters) { return make_sink(counters); };
  MD_TRY(sender_, PrecopySender::make(plan_, machine_, *writer_, limits_, progress_, events_, stop_, sink_maker));
  auto sent = sender_->send_start();
  if (!sent) return std::move(sent).error().with("set up memory");
  ByteWriter early;
  for (const DeviceSection& section : machine_.early_sections()) stream::encode_device_section(early, section);
  MD_CHECK(writer_->append(early.view()));
  progress_.setup_ms = static_cast<std::int64_t>(milliseconds_since(started_));
  events_.status(MigrationStatus::active);
  return {};
}

Result<std::unique_ptr<ram::PageSink>> MigrationSource::make_sink(ram::SendCounters& counters) {
  if (plan_.mapped) {
    const std::size_t depth = std::max(writes_in_flight / plan_.mapped->workers, writes_per_worker);
    MD_TRY(auto pages,
           transports::share_positional_file(page_fd_.get(), plan_.mapped->direct_io, depth, plan_.mapped->workers));
    MD_TRY(const bool empty, transports::reads_as_zeros_when_new(page_fd_.get()));
    page_fd_.reset();
    MD_TRY(auto sink, ram::SinkMapped::make(machine_.ram(), *writer_, *file_, std::move(pages), stop_,
                                            progress_.threads, counters, {plan_.mapped->detect_zeros, empty}));
    mapped_sink_ = sink.get();
    return std::unique_ptr<ram::PageSink>(std::move(sink));
  }
  ram::SinkStream::Options options{.skip_holes = plan_.skip_holes, .addresses = plan_.ignore_shared};
  if (postcopy_) {
    for (const auto& block : postcopy_->blocks()) options.page_sizes.push_back(block.host_pages * ram::page_size);
  }
  if (rdma_ != nullptr) {
    ram::SinkRdma::Options rdma_options;
    rdma_options.skip_holes = plan_.skip_holes;
    rdma_options.memory_may_go = machine_.kind() == MachineKind::attached;
    rdma_options.page_sizes = std::move(options.page_sizes);
    return std::unique_ptr<ram::PageSink>(std::make_unique<ram::SinkRdma>(
        machine_.ram(), *writer_, rdma_->connections(), stop_, counters, std::move(rdma_options)));
  }
  auto stream = std::make_unique<ram::SinkStream>(machine_.ram(), *writer_, stop_, counters, std::move(options));
  if (!multifd_) return std::unique_ptr<ram::PageSink>(std::move(stream));
  const MultifdRules rules = multifd_rules(machine_.configuration().machine_name, plan_.multifd->zero_pages);
  return std::unique_ptr<ram::PageSink>(std::make_unique<ram::SinkMultifd>(
      machine_.ram(), std::move(stream), *writer_, *multifd_, stop_, counters,
      ram::SinkMultifd::Options{rules.zeros, plan_.skip_holes, rules.sync_per_section}));
}

Result<void> MigrationSource::iterate() {
  while (true) {
    if (stop_.requested()) return cancelled_error();
    if (return_path_ && return_path_->answer() != PeerAnswer::none) return return_path_->why();
    MD_TRY(const bool postcopy, postcopy_is_due());
    if (postcopy) return {};
    MD_TRY(const bool time_to_look, sender_->send_part());
    publish_channels();
    if (!time_to_look) continue;
    MD_TRY(const bool may_stop, sender_->synchronise());
    if (!may_stop) continue;
    if (!plan_.switchover_ack || return_path_->switchover_acknowledged()) return {};
    if (sender_->remaining_bytes() == 0 && !stop_.sleep_for(acknowledge_poll)) return cancelled_error();
  }
}

// With switchover-ack the guest runs on until the destination is ready, pages or not.
Result<bool> MigrationSource::postcopy_is_due() {
  if (!postcopy_ || !postcopy_control_.wanted()) return false;
  while (plan_.switchover_ack && !return_path_->switchover_acknowledged()) {
    if (!plan_.postcopy->at_once) return false;
    if (return_path_->answer() != PeerAnswer::none) return return_path_->why();
    if (!stop_.sleep_for(acknowledge_poll)) return cancelled_error();
  }
  MD_CHECK(prepare_postcopy());
  return true;
}

Result<void> MigrationSource::prepare_postcopy() {
  SourceLink link = lend_link();
  auto prepared = postcopy_->prepare(link, target_);
  take_back(std::move(link));
  MD_CHECK(prepared);
  // It has answered by now, and shown what it is.
  if (rdma_ != nullptr && rdma_->peer_is_old()) {
    return plan_error(
        "postcopy over RDMA with QEMU 7.2 breaks: its destination aborts or loses a message (10.0 does not). The "
        "migration is given up while the machine is still here");
  }
  postcopy_prepared_ = true;
  return {};
}

SourceLink MigrationSource::lend_link() {
  SourceLink link;
  link.main = std::move(channel_);
  link.preempt = std::move(preempt_);
  link.writer = std::move(writer_);
  link.return_path = std::move(return_path_);
  return link;
}

void MigrationSource::take_back(SourceLink link) {
  channel_ = std::move(link.main);
  preempt_ = std::move(link.preempt);
  writer_ = std::move(link.writer);
  return_path_ = std::move(link.return_path);
}

// From the commit in hand_over() on the machine is the peer's.
Result<void> MigrationSource::go_by_postcopy() {
  // Asked for when the machine stood still already: a destination that waits for the second connection would wait in
  // vain.
  if (!postcopy_prepared_) MD_CHECK(prepare_postcopy());
  MD_TRY(std::optional<ram::DirtyBitmaps> lacking, sender_->freeze());
  auto devices = machine_.save_devices(run_control_.outgoing_state_name());
  if (!devices) return std::move(devices).error().with("save devices");
  MD_CHECK(machine_.ram().check());
  sent_before_ = sender_->total_sent();
  sender_.reset();
  publish_channels();
  rdma_ = nullptr;

  auto handed_over = postcopy_->hand_over(lend_link(), std::move(lacking), std::move(devices->sections));
  if (!postcopy_->handed_over()) return handed_over;
  point_ = Point::handed_over;
  written_at_ = Clock::now();
  progress_.downtime_us = std::chrono::duration_cast<std::chrono::microseconds>(*written_at_ - stopped_at_).count();
  run_control_.leave_by_postcopy();
  events_.status(MigrationStatus::postcopy_active);
  auto served = postcopy_->serve();
  if (!served && !postcopy_->handed_over()) {
    point_ = postcopy_->outcome_unknown() ? Point::eof_tried : Point::stopped;
  }
  return served;
}

Result<void> MigrationSource::stop_machine() {
  stopped_at_ = Clock::now();
  MD_TRY(const bool ran, run_control_.begin_switchover(passes_guest()));
  point_ = Point::stopped;
  if (ran) events_.guest_stopped();
  return {};
}

Result<void> MigrationSource::wait_in_pre_switchover() {
  if (plan_.pause_before_switchover) {
    events_.status(MigrationStatus::pre_switchover);
    MD_CHECK(await_word());
  }
  events_.status(MigrationStatus::device);
  return {};
}

// The word to go on, or that of a destination that cannot wait any longer: nothing is written here that would fail.
Result<void> MigrationSource::await_word() {
  pollfd fds[] = {{stop_.fd(), POLLIN, 0},
                  {continue_gate_.fd(), POLLIN, 0},
                  {return_path_ ? return_path_->answered_fd() : -1, POLLIN, 0}};
  while (!continue_gate_.is_open()) {
    if (stop_.requested()) return cancelled_error();
    if (return_path_ && return_path_->answer() != PeerAnswer::none) return return_path_->why();
    if (::poll(fds, std::size(fds), -1) < 0 && errno != EINTR) return Error::from_errno("wait for migrate-continue");
  }
  return {};
}

Result<void> MigrationSource::send_rest() { return sender_->send_end(); }

Result<void> MigrationSource::send_devices() {
  auto devices = machine_.save_devices(run_control_.outgoing_state_name());
  if (!devices) return std::move(devices).error().with("save devices");
  ByteWriter out;
  for (const DeviceSection& section : devices->sections) stream::encode_device_section(out, section);
  MD_CHECK(writer_->append(out.view()));
  description_ = std::move(devices->description);
  return writer_->flush();
}

Result<void> MigrationSource::send_end() {
  ByteWriter out;
  stream::encode_eof(out);
  // QEMU waits for a description while the connection stays open; an empty one will do (stream.md section 10). Over
  // RDMA it does so also when the connection has ended, and 10.0 falls over that.
  if (description_ || plan_.return_path || plan_.rdma) stream::encode_description(out, description_.value_or(""));
  MD_CHECK(machine_.ram().check());
  if (stop_.requested()) return cancelled_error();
  // Before append: what is larger than the writer's buffer goes out there and then.
  point_ = Point::eof_tried;
  if (return_path_) return_path_->expect_success();
  MD_CHECK(writer_->append(out.view()));
  return writer_->flush();
}

Result<void> MigrationSource::await_answer() {
  if (!return_path_) {
    MD_CHECK(channel_->finish_writing());
    // Whether the disk has it yet is no matter of the guest's standstill: nobody waits to run it.
    written_at_ = Clock::now();
    MD_CHECK(channel_->sync_to_disk());
  } else {
    MD_CHECK(return_path_->wait_for_answer());
    if (return_path_->answer() != PeerAnswer::success) return return_path_->why();
  }
  point_ = Point::answered;
  return {};
}

// The peer's own word stands above what became of our write or of a cancel: it may have answered success and closed
// before it took all we had to say, or said more than "Broken pipe" about its failure.
Result<void> MigrationSource::prefer_peers_word(Result<void> result) {
  if (result || !return_path_) return result;
  const bool cancelled = result.error().is_cancelled();
  const auto wait = peers_word_wait(result.error());
  PeerAnswer answer = cancelled ? return_path_->answer() : return_path_->wait_for_answer(wait);
  // A channel's failure raised the stop, and that has ended the reader, too.
  const bool unread = multifd_ && !cancelled && answer == PeerAnswer::lost && return_path_->why().is_cancelled();
  if (unread) answer = read_last_word(*channel_, wait);
  peer_refused_ = unread && answer == PeerAnswer::failure;
  if (answer == PeerAnswer::success && point_ == Point::eof_tried) return {};
  if (answer == PeerAnswer::failure && unread) return peer_failed();
  if ((answer == PeerAnswer::failure || answer == PeerAnswer::premature) && !cancelled) return return_path_->why();
  return result;
}

// A guest that another daemon goes on with, or would have, has noticed nothing.
void MigrationSource::tell_guest(MachineOutcome what, const std::string& why) noexcept {
  if (!passes_guest()) machine_.note_outcome(what, why);
}

// True: the new process is gone, and the machine is as it was. Its word may have come while it was being ended; only a
// guest that runs within the process may have written its memory since.
bool MigrationSource::revoke() {
  if (!revoke_) return false;
  revoke_();
  const bool answered =
      (return_path_ && return_path_->answer() == PeerAnswer::success) || (channel_ && has_unread_success(*channel_));
  auto* const space = machine_.guest_space();
  return !answered || space == nullptr || !space->is_here();
}

SourceOutcome MigrationSource::settle(Result<void> result) {
  result = prefer_peers_word(std::move(result));
  const bool revoked = !result && revoke();
  const bool into_file = target_.is_file();
  peer_refused_ = peer_refused_ || (return_path_ && return_path_->answer() == PeerAnswer::failure);
  SourceOutcome outcome{std::move(result), Ownership::ours, false};
  if (point_ != Point::before_stop) {
    progress_.downtime_us =
        std::chrono::duration_cast<std::chrono::microseconds>(written_at_.value_or(Clock::now()) - stopped_at_).count();
  }
  progress_.total_ms = static_cast<std::int64_t>(milliseconds_since(started_));
  progress_.transferred = sender_ ? sender_->total_sent() : writer_ ? writer_->total_written() : sent_before_;
  publish_channels();
  if (progress_.missed_zero_copy != 0)
    log::info("zero-copy-send: the kernel copied all the same between {} synchronisations of channels",
              progress_.missed_zero_copy.load());

  // Protection and throttle are lifted before the guest can run again.
  sender_.reset();
  multifd_.reset();
  if (rdma_ != nullptr && !outcome.result) rdma_->say_failure({});
  if (point_ == Point::handed_over) {
    outcome.ownership = Ownership::handed_over;
    run_control_.finish_switchover(outcome.ownership);
    machine_.note_outcome(MachineOutcome::left, "migrated by postcopy");
    if (!outcome.result) {
      outcome.result = Error(ErrorKind::peer,
                             "the machine was handed over, and ended here before all of its memory was: "
                             "its guest waits for pages that are lost (" +
                                 outcome.result.error().text() + ")");
    }
  } else if (outcome.result) {
    outcome.ownership = into_file ? Ownership::ours : Ownership::handed_over;
    run_control_.finish_switchover(outcome.ownership);
    tell_guest(into_file ? MachineOutcome::stays : MachineOutcome::left,
               into_file ? "saved to a file; it rests here" : "migrated");
  } else if (point_ == Point::eof_tried && !into_file && !peer_refused_ && !revoked) {
    outcome.ownership = Ownership::unknown;
    run_control_.finish_switchover(outcome.ownership);
    outcome.result =
        Error(ErrorKind::peer, "outcome unknown: the last byte was written but no answer came (" +
                                   outcome.result.error().text() +
                                   "); the peer may run the machine. It stays stopped here; 'cont' makes it run here");
  } else if (tell_guest(MachineOutcome::stays, outcome.result.error().text()); point_ != Point::before_stop) {
    auto resumed = run_control_.abort_switchover();
    outcome.resumed = resumed && *resumed;
    if (!resumed) log::error("the guest could not be started again: {}", resumed.error().text());
  }
  cpr_.reset();
  return_path_.reset();
  postcopy_.reset();
  preempt_.reset();
  writer_.reset();
  channel_.reset();
  return outcome;
}

}  // namespace migrationd::migration
