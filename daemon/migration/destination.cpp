// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/destination.hpp"

#include "base/closed_by_peer.hpp"
#include "base/limits.hpp"
#include "base/log.hpp"
#include "daemon/migration/cpr_limits.hpp"
#include "daemon/migration/incoming_gate.hpp"
#include "daemon/migration/postcopy_destination.hpp"
#include "daemon/migration/rdma_connections.hpp"
#include "protocol/stream/device_tail.hpp"
#include "protocol/stream/footer_scan.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/mapped_ram.hpp"
#include "protocol/stream/return_path.hpp"
#include "ram/decode_next.hpp"
#include "ram/multifd_receiver.hpp"
#include "ram/origin_file.hpp"
#include "ram/ram_section_reader.hpp"
#include "ram/rdma_receiver.hpp"
#include "ram/store_kept.hpp"
#include "ram/store_plain.hpp"
#include "ram/stream_index.hpp"
#include "transports/positional_file.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <utility>

namespace migrationd::migration {
namespace {

using qmp::MigrationStatus;
using ram::decode_next;

// Of all workers on a mapped-ram file together, and of one at least; each is 256 KiB, or 1 MiB into memory that is
// there.
constexpr std::size_t reads_in_flight = 32;
constexpr std::size_t reads_per_worker = 4;

}  // namespace

MigrationDestination::MigrationDestination(DestinationPlan plan, transports::IncomingTarget target,
                                           std::unique_ptr<MachineReceiver> receiver,
                                           std::optional<stream::Uuid> own_uuid, RunControl& run_control,
                                           Progress& progress, MoverEvents& events, StopSource& stop,
                                           RecoveryControl& recovery)
    : plan_(plan),
      target_(std::move(target)),
      receiver_(std::move(receiver)),
      own_uuid_(own_uuid),
      run_control_(run_control),
      progress_(progress),
      events_(events),
      stop_(stop),
      postcopy_(std::make_unique<PostcopyDestination>(plan_.postcopy, *receiver_, run_control_, progress_, events_,
                                                      stop_, recovery)) {}

MigrationDestination::~MigrationDestination() = default;

DestinationOutcome MigrationDestination::run() {
  DestinationOutcome outcome;
  outcome.result = run_phases();
  outcome.lost = postcopy_->lost();
  outcome.stranded = postcopy_->stranded();
  outcome.blocktime = postcopy_->blocktime();
  // A channel's thread raised the stop, and knows why.
  if (!outcome.result && outcome.result.error().is_cancelled() && multifd_) {
    if (auto failure = multifd_->failure()) outcome.result = std::move(*failure);
  }
  // First our word: a source that meets the end of a channel before it has nothing to say of why.
  if (!outcome.result) report_failure();
  // The source may close them when it has had our answer, and still write to them before.
  multifd_.reset();
  if (outcome.result) outcome.machine = receiver_->take();
  ram_reader_.reset();
  rdma_receiver_.reset();
  reader_.reset();
  channel_.reset();
  return outcome;
}

Result<void> MigrationDestination::run_phases() {
  if (plan_.memory_is_here) MD_CHECK(take_memory());
  MD_CHECK(accept());
  MD_CHECK(read_preamble());
  MD_CHECK(read_until_ram_end());
  if (postcopy_->has_package()) return complete_postcopy();
  MD_CHECK(read_devices());
  MD_CHECK(load_devices());
  MD_CHECK(answer());
  start_arrived(run_control_, events_);
  return {};
}

Result<void> MigrationDestination::take_memory() {
  auto taken = receiver_->take_descriptors(std::move(descriptors_));
  if (!taken) return std::move(taken).error().with("cpr channel");
  return {};
}

Result<void> MigrationDestination::accept() {
  if (plan_.mapped || plan_.lazy) {
    MD_TRY(transports::MappedFile file, target_->take_file(stop_));
    file_ = file.stream.get();
    page_fd_ = std::move(file.pages);
    channel_ = std::move(file.stream);
    if (plan_.lazy) {
      MD_TRY(file_guard_, ram::FileGuard::of(page_fd_.get()));
    }
  } else if (auto* door = target_->rdma()) {
    MD_TRY(auto channel, accept_rdma(*door, stop_));
    rdma_ = channel.get();
    channel_ = std::move(channel);
  } else if (auto* listener = target_->listener()) {
    ExpectedSource expected;
    if (plan_.memory_is_here) expected.patience = limits::cpr_main_wait;
    if (plan_.multifd) {
      expected.multifd_channels = plan_.multifd->channels;
      expected.uuid = own_uuid_;
    }
    expected.preempt = postcopy_->wants_preempt();
    MD_TRY(auto source, accept_source(*listener, stop_, expected));
    channel_ = std::move(source.main);
    preempt_ = std::move(source.preempt);
    channels_ = std::move(source.multifd);
    multifd_uuid_ = source.uuid;
  } else {
    MD_TRY(channel_, target_->take_channel(stop_));
  }
  // One machine, one source: nobody else is let in, but for its second connection.
  if (!postcopy_->wants_preempt() || preempt_) target_.reset();
  log::info("incoming migration from {}", channel_->describe());
  reader_ = std::make_unique<transports::BufferedReader>(*channel_);
  events_.status(MigrationStatus::active);
  return {};
}

// Who writes a mapped-ram file here writes its first bytes last.
Result<void> MigrationDestination::refuse_unfinished_file() {
  MD_TRY(const ByteView start, reader_->peek(stream::header_bytes));
  const auto begins = start.first(stream::header_bytes);
  if (std::any_of(begins.begin(), begins.end(), [](std::byte value) { return value != std::byte{0}; })) return {};
  return wire_error("the file is incomplete: it was not written to its end (zeros stand where its header is due)");
}

Result<void> MigrationDestination::read_preamble() {
  if (plan_.mapped) MD_CHECK(refuse_unfinished_file());
  auto header = decode_next(*reader_, stream::decode_header);
  if (!header) return std::move(header).error().with("load the stream's header");
  // Every source sends the configuration with the header; one that does not would hold the place for ever.
  if (reader_->buffered().empty()) {
    MD_TRY(const bool quiet, source_is_quiet(limits::header_wait));
    if (quiet) return wire_error("the source sent a header and nothing behind it in time");
  }
  auto decoded = decode_next(*reader_, stream::decode_configuration);
  if (!decoded) return std::move(decoded).error().with("load the configuration section");
  stream::Configuration& received = *decoded;

  stream::ConfigurationExpectations expectations;
  expectations.uuid = own_uuid_;
  expectations.mapped_ram = plan_.mapped.has_value();
  expectations.ignore_shared = plan_.ignore_shared;
  auto warnings = stream::check_configuration(received, expectations);
  if (!warnings) return std::move(warnings).error().with("load the configuration section");
  for (const std::string& warning : *warnings) log::warning(warning);

  MachineConfiguration configuration;
  configuration.machine_name = received.machine_name;
  configuration.target_page_bits = received.target_page_bits;
  configuration.uuid = received.uuid;
  configuration.multifd_uuid = multifd_uuid_;
  return receiver_->begin(configuration);
}

Result<void> MigrationDestination::read_until_ram_end() {
  while (!ram_ended_ && !postcopy_->has_package()) {
    auto element = decode_next(*reader_, stream::decode_element);
    if (!element)
      return std::move(element).error().with(fmt::format("load the element at {}", hex(reader_->position())));
    MD_CHECK(handle_element(*element));
  }
  return {};
}

Result<void> MigrationDestination::handle_element(const stream::Element& element) {
  if (const auto* start = std::get_if<stream::SectionStart>(&element)) return begin_ram(start->header);
  if (const auto* part = std::get_if<stream::SectionPart>(&element)) return read_ram_body(part->section_id);
  if (const auto* full = std::get_if<stream::SectionFull>(&element)) return read_early_section(full->header);
  if (const auto* command = std::get_if<stream::Command>(&element)) return handle_command(*command);
  if (const auto* end = std::get_if<stream::SectionEnd>(&element)) {
    MD_CHECK(postcopy_->end_as_precopy());
    if (multifd_) multifd_->begin_last_section();
    MD_CHECK(read_ram_body(end->section_id));
    // Before the devices: they may look at memory, and what never came is zero.
    drop_rdma_registrations();
    auto finished = plan_.lazy ? keep_pages_in_file() : store_->finish();
    if (!finished) return std::move(finished).error().with("section 'ram': what was not sent");
    ram_ended_ = true;
    return {};
  }
  return wire_error("the stream ends before the memory was complete");
}

Result<void> MigrationDestination::handle_command(const stream::Command& command) {
  if (std::holds_alternative<stream::command::OpenReturnPath>(command)) {
    if (!channel_->bidirectional()) {
      return wire_error(
          fmt::format("the source wants a return path, but {} carries bytes one way only", channel_->describe()));
    }
    return_path_open_ = true;
    // No device of ours has to be ready first, so the acknowledgement goes out at once, as QEMU's does.
    return plan_.switchover_ack ? tell_source(stream::reply::SwitchoverAck{}) : Result<void>();
  }
  if (const auto* ping = std::get_if<stream::command::Ping>(&command)) {
    if (!return_path_open_) return wire_error("PING before OPEN_RETURN_PATH");
    // A source that is gone is found gone by who reads what it sent, and that may be the whole machine.
    auto told = tell_source(stream::reply::Pong{ping->value});
    return !told && closed_by_peer(told.error()) ? Result<void>() : told;
  }
  if (std::holds_alternative<stream::command::SwitchoverStart>(command)) {
    receiver_->note_switchover_start();
    return {};
  }
  if (const auto* advise = std::get_if<stream::command::PostcopyAdvise>(&command)) {
    // It would empty memory that the old process still answers for.
    if (plan_.memory_is_here) return wire_error("POSTCOPY_ADVISE for a machine whose memory came by descriptor");
    if (rdma_ != nullptr && rdma_->peer_is_old()) {
      return wire_error(
          "postcopy over RDMA from QEMU 7.2 breaks (from 10.0 it does not): switch postcopy-ram off at the source");
    }
    return postcopy_->advise(*advise, ram_section_id_.has_value());
  }
  if (const auto* discard = std::get_if<stream::command::PostcopyRamDiscard>(&command)) {
    // What is pinned would outlive its hole.
    drop_rdma_registrations();
    return postcopy_->discard(*discard);
  }
  if (const auto* packaged = std::get_if<stream::command::Packaged>(&command)) return take_package(*packaged);
  return wire_error(fmt::format("command {} in its place", stream::command_name(command)));
}

Result<void> MigrationDestination::take_package(const stream::command::Packaged& packaged) {
  if (!return_path_open_) return wire_error("postcopy without OPEN_RETURN_PATH: nobody could ask for pages");
  // The source makes it before it stops its guest, at the latest.
  if (postcopy_->wants_preempt() && !preempt_) {
    auto* const listener = target_ ? target_->listener() : nullptr;
    if (listener == nullptr) return wire_error("preempt channel: this transport has one connection only");
    MD_TRY(preempt_, accept_preempt(*listener, stop_, *channel_));
  }
  target_.reset();
  return postcopy_->receive_package(packaged, *reader_, ram_section_id_.value_or(0), early_sections_);
}

Result<void> MigrationDestination::complete_postcopy() {
  // What reads the stream's first part ends here, before its reader moves on.
  ram_reader_.reset();
  publish_received();
  rdma_receiver_.reset();
  rdma_ = nullptr;
  DestinationLink link;
  link.main = std::move(channel_);
  link.preempt = std::move(preempt_);
  link.reader = std::move(reader_);
  return postcopy_->complete(std::move(link), std::move(early_sections_));
}

Result<void> MigrationDestination::begin_ram(const stream::SectionHeader& header) {
  if (header.name != "ram") {
    return wire_error(fmt::format("section '{}' (id {}): only 'ram' may be sent in parts", printable(header.name),
                                  header.section_id));
  }
  if (ram_section_id_) return wire_error("section 'ram' starts twice");
  if (header.instance_id != 0 || header.version_id != stream::ram_section_version) {
    return wire_error(fmt::format("section 'ram': instance {} version {}, expected 0 and {}", header.instance_id,
                                  header.version_id, stream::ram_section_version));
  }
  auto blocks = read_block_list();
  if (!blocks) return std::move(blocks).error().with("section 'ram': block list");
  auto machine = receiver_->prepare_memory(*blocks, header.section_id);
  if (!machine) return std::move(machine).error().with("section 'ram': block list");
  machine_ = *machine;
  ram_section_id_ = header.section_id;
  if (!plan_.memory_is_here) progress_.ram_total = machine_->ram().total_bytes();

  if (plan_.lazy) {
    MD_CHECK(index_pages());
  } else {
    if (postcopy_->advised()) MD_CHECK(postcopy_->begin_memory(*machine_, *blocks));
    MD_CHECK(prepare_store(*blocks));
  }
  if (plan_.multifd) MD_CHECK(start_channels());
  return read_ram_body(header.section_id);
}

Result<void> MigrationDestination::prepare_store(const std::vector<stream::RamSetupBlock>& blocks) {
  if (plan_.memory_is_here) {
    store_ = std::make_unique<ram::StoreKept>();
  } else {
    std::vector<bool> kept(machine_->ram().size());
    for (std::size_t i = 0; plan_.ignore_shared && i < kept.size(); ++i)
      kept[i] = machine_->ram().at(i).is_named_file();
    MD_TRY(store_, ram::StorePlain::make(machine_->ram(), kept));
    if (plan_.ignore_shared) store_ = std::make_unique<ram::StoreKept>(std::move(kept), std::move(store_));
  }
  if (plan_.mapped) {
    auto loaded = load_mapped_pages();
    if (!loaded) return std::move(loaded).error().with("section 'ram'");
  } else {
    ram_reader_ =
        std::make_unique<ram::RamSectionReader>(*reader_, machine_->ram(), postcopy_->noting(*store_), counters_);
  }
  if (rdma_ == nullptr) return {};
  std::vector<std::string> names;
  names.reserve(blocks.size());
  for (const stream::RamSetupBlock& block : blocks) names.push_back(block.name);
  MD_TRY(rdma_receiver_,
         ram::RdmaReceiver::make(*rdma_, machine_->ram(), postcopy_->noting(*store_), counters_, names));
  ram_reader_->serve_hooks_by(*rdma_receiver_);
  return {};
}

void MigrationDestination::drop_rdma_registrations() noexcept {
  if (rdma_receiver_) rdma_receiver_->drop_registrations();
}

// Pages with places need no index; those of a plain stream are found while its bodies are gone through.
Result<void> MigrationDestination::index_pages() {
  if (plan_.mapped) return {};
  index_ = std::make_unique<ram::StreamIndex>(machine_->ram(), *file_, file_guard_->size(), stop_);
  return {};
}

Result<void> MigrationDestination::keep_pages_in_file() {
  std::vector<ram::BlockPlaces> places;
  if (index_) places = std::move(*index_).take();
  for (const ram::MappedBlock& mapped : mapped_blocks_) {
    MD_TRY(ram::BlockPlaces block, ram::places_of(mapped, *file_));
    places.push_back(std::move(block));
  }
  MD_CHECK(file_guard_->check(page_fd_.get()));
  return receiver_->keep_pages_at(
      std::make_unique<ram::OriginFile>(std::move(page_fd_), plan_.file_path, *file_guard_, std::move(places)));
}

// What they have sent so far waits in their sockets: nothing can be taken before the block list is known.
Result<void> MigrationDestination::start_channels() {
  MD_TRY(multifd_, ram::MultifdReceiver::start(std::move(channels_), plan_.multifd->method, machine_->ram(), *store_,
                                               stop_, progress_.threads));
  ram_reader_->meet_channels(*multifd_);
  return {};
}

Result<std::vector<stream::RamSetupBlock>> MigrationDestination::read_block_list() {
  if (!plan_.mapped) return ram::read_ram_setup(*reader_, {plan_.ignore_shared, postcopy_->advised()});
  MD_TRY(mapped_blocks_, ram::read_mapped_setup(*reader_, *file_));
  std::vector<stream::RamSetupBlock> blocks;
  for (const ram::MappedBlock& mapped : mapped_blocks_) blocks.push_back(mapped.block);
  return blocks;
}

Result<void> MigrationDestination::load_mapped_pages() {
  const MappedPlan& plan = *plan_.mapped;
  const std::size_t depth = std::clamp(reads_in_flight / plan.workers, reads_per_worker, reads_in_flight / 2);
  MD_TRY(auto pages, transports::share_positional_file(page_fd_.get(), plan.direct_io, depth, plan.workers));
  page_fd_.reset();
  MD_TRY(const auto loader, ram::MappedLoader::make(machine_->ram(), *store_, *file_, std::move(pages), stop_,
                                                    progress_.threads, counters_));
  return loader->load(mapped_blocks_);
}

Result<void> MigrationDestination::read_records() {
  if (ram_reader_) return ram_reader_->read_body();
  if (index_) return index_->read_body(*reader_);
  MD_TRY([[maybe_unused]] const bool ended, decode_next(*reader_, stream::decode_mapped_ram_body));
  return {};
}

Result<void> MigrationDestination::read_ram_body(std::uint32_t section_id) {
  if (!ram_section_id_ || section_id != *ram_section_id_) {
    return wire_error(fmt::format("a part of the unknown section {}", section_id));
  }
  auto read = read_records();
  if (!read) return std::move(read).error().with(fmt::format("load section 'ram' (id {})", section_id));
  publish_received();
  return read_footer(section_id, "ram");
}

// Pages of a mapped-ram file and of multifd come beside the stream.
void MigrationDestination::publish_received() noexcept {
  if (rdma_ != nullptr) progress_.rdma.take(rdma_->totals());
  const std::uint64_t beside = file_ != nullptr ? counters_.normal_pages.get() * ram::page_size : 0;
  progress_.transferred = reader_->position() + beside;
  progress_.normal_pages = counters_.normal_pages.get();
  progress_.zero_pages = counters_.zero_pages.get();
  if (!multifd_) return;
  progress_.multifd_bytes = multifd_->bytes_received();
  progress_.transferred += multifd_->bytes_received();
  progress_.normal_pages += multifd_->normal_pages();
  progress_.zero_pages += multifd_->zero_pages();
}

Result<void> MigrationDestination::read_footer(std::uint32_t section_id, std::string_view name) {
  auto footer =
      decode_next(*reader_, [&](ByteView available) { return stream::decode_footer(available, section_id, name); });
  if (!footer) return std::move(footer).error();
  return {};
}

// A device that is needed before the memory (virtio-mem). Without a length: the scan finds its footer.
Result<void> MigrationDestination::read_early_section(const stream::SectionHeader& header) {
  const std::string context = fmt::format("section '{}' before the memory", printable(header.name));
  if (!ram_section_id_) return wire_error("comes before 'ram'").with(context);
  if (early_sections_.size() >= limits::sections) return Error(ErrorKind::limit, "too many sections").with(context);
  stream::EarlySectionScan scan(header.section_id, *ram_section_id_);
  auto found = scan.feed(reader_->buffered());
  while (found.needs_more()) {
    if (found.needed() > reader_->capacity()) return wire_error("its end was not found").with(context);
    MD_TRY(const ByteView available, reader_->peek(found.needed()));
    found = scan.feed(available);
  }
  if (found.failed()) return std::move(found).error().with(context);
  const ByteView body = reader_->buffered().first(found.value());
  DeviceSection section;
  section.section_id = header.section_id;
  section.name = header.name;
  section.instance_id = header.instance_id;
  section.version_id = header.version_id;
  section.body.assign(body.begin(), body.end());
  section.early = true;
  reader_->consume(found.consumed());
  early_sections_.push_back(std::move(section));
  return {};
}

// Device sections have no length: everything behind the memory is fed to the tail until it knows that it is whole.
Result<void> MigrationDestination::read_devices() {
  stream::DeviceTail tail(*ram_section_id_, std::move(early_sections_));
  auto progress = read_tail(tail);
  if (!progress) return std::move(progress).error().with("load the devices");
  stream::DeviceTailContents contents = std::move(tail).take();
  devices_.sections = std::move(contents.sections);
  devices_.description = std::move(contents.description);
  if (contents.proof == stream::TailProof::footers) {
    log::warning("the stream has no usable description: device sections were told apart by their footers");
  } else if (contents.proof == stream::TailProof::names) {
    log::warning("the description's sizes are not those of the stream: device sections were told apart by their names");
  }
  return {};
}

Result<void> MigrationDestination::read_tail(stream::DeviceTail& tail) {
  while (true) {
    if (reader_->buffered().empty()) {
      MD_TRY(const bool quiet, source_is_quiet(limits::end_quiet_time));
      if (quiet && tail.size() > 0) {
        MD_TRY(const auto progress, tail.quiet());
        if (progress == stream::TailProgress::complete) return {};
      }
    }
    MD_TRY(const bool ended, reader_->at_end());
    if (ended) {
      MD_TRY(const auto progress, tail.closed());
      if (progress == stream::TailProgress::complete) return {};
      return wire_error("the stream ends too early");
    }
    const ByteView available = reader_->buffered();
    MD_TRY(const auto progress, tail.feed(available));
    reader_->consume(available.size());
    publish_received();
    // Without a return path the end of the connection is part of the proof; with one the source waits for us. By
    // cpr-transfer the source closes late, when it has tidied up, and the guest stands still: the description's last
    // byte has to do, as it does for QEMU.
    if (progress == stream::TailProgress::complete && (return_path_open_ || plan_.memory_is_here)) return {};
  }
}

// True when nothing came for so long. Files are never quiet.
Result<bool> MigrationDestination::source_is_quiet(std::chrono::milliseconds wait) {
  if (rdma_ != nullptr) {
    MD_TRY(const bool came, rdma_->wait_for_bytes(wait));
    return !came;
  }
  if (channel_->readable_fd() < 0) return false;
  pollfd fds[] = {{channel_->readable_fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}};
  const int ready = ::poll(fds, 2, static_cast<int>(wait.count()));
  if (ready < 0 && errno != EINTR) return Error::from_errno("wait for the source");
  return ready == 0;
}

Result<void> MigrationDestination::load_devices() {
  auto run_state = machine_->load_devices(std::move(devices_));
  if (!run_state) return std::move(run_state).error().with("load the devices");
  received_state_ = std::move(*run_state);
  if (plan_.goes_on && received_state_ == "paused") received_state_ = "running";
  return {};
}

// From here on the machine is ours, whatever becomes of the connection: the stream was whole, and the source will not
// run the machine without a word of ours or an explicit one of its user.
Result<void> MigrationDestination::answer() {
  MD_CHECK(machine_->ram().check());
  if (stop_.requested()) return cancelled_error();
  if (return_path_open_) {
    auto told = tell_source(stream::reply::Shut{0});
    // Memory that came by descriptor is the old process's still: without our word it goes on with it.
    if (!told && plan_.memory_is_here) return std::move(told).error().with("tell the old process");
    if (!told) log::warning(fmt::format("the source could not be told of the success: {}", told.error().text()));
  }
  run_control_.incoming_loaded(*machine_, received_state_);
  if (plan_.memory_is_here && machine_->goes_on_alone()) {
    machine_->take_up();
    return {};
  }
  machine_->note_outcome(MachineOutcome::arrived, "migrated here");
  return {};
}

Result<void> MigrationDestination::tell_source(const stream::ReturnMessage& message) {
  ByteWriter out;
  stream::encode_return_message(out, message);
  const iovec piece{const_cast<std::byte*>(out.view().data()), out.size()};
  return channel_->write({&piece, 1});
}

// Also after a cancel, when the channel itself refuses to write: a source that has sent everything would otherwise
// believe the outcome unknown, and keep its guest stopped, for a machine that nobody has.
void MigrationDestination::report_failure() noexcept {
  if (rdma_ != nullptr) {
    ByteWriter out;
    if (return_path_open_) stream::encode_return_message(out, stream::reply::Shut{1});
    return rdma_->say_failure(out.view());
  }
  if (!return_path_open_ || !channel_) return;
  ByteWriter out;
  stream::encode_return_message(out, stream::reply::Shut{1});
  // What is no socket has no other word than its closing.
  [[maybe_unused]] const auto sent =
      ::send(channel_->readable_fd(), out.view().data(), out.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace migrationd::migration
