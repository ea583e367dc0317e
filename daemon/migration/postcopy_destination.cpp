// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/postcopy_destination.hpp"

#include "base/log.hpp"
#include "daemon/migration/incoming_gate.hpp"
#include "daemon/migration/multifd_rules.hpp"
#include "ram/decode_next.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::migration {

using postcopy::BlockShape;
using qmp::MigrationStatus;
using stream::page_bytes;

namespace {

// A package is read in steps: its length is a claim until the bytes are here.
constexpr std::size_t package_step = std::size_t{1} << 20;

std::uint64_t or_of_page_sizes(const ram::RamMap& map) {
  std::uint64_t sizes = 0;
  for (std::size_t i = 0; i < map.size(); ++i) sizes |= map.at(i).backing_page();
  return sizes;
}

Result<Bytes> read_whole(transports::BufferedReader& reader, std::uint32_t length) {
  Bytes bytes;
  while (bytes.size() < length) {
    const std::size_t before = bytes.size();
    bytes.resize(before + std::min<std::size_t>(package_step, length - before));
    MD_CHECK(reader.read_exact(std::span(bytes).subspan(before)));
  }
  return bytes;
}

}  // namespace

PostcopyDestination::PostcopyDestination(std::optional<PostcopyArrivalPlan> plan, MachineReceiver& receiver,
                                         RunControl& run_control, Progress& progress, MoverEvents& events,
                                         StopSource& stop, RecoveryControl& control)
    : plan_(plan),
      receiver_(receiver),
      run_control_(run_control),
      progress_(progress),
      events_(events),
      stop_(stop),
      control_(control),
      state_(plan.has_value()) {}

PostcopyDestination::~PostcopyDestination() {
  // Threads before what they use; the members' order sees to the rest.
  pages_reader_.reset();
  puller_.reset();
  faults_.reset();
}

// --- while the source's guest runs
// -------------------------------------------------------------------------------------

Result<void> PostcopyDestination::advise(const stream::command::PostcopyAdvise& advise, bool memory_began) {
  Machine* const resident = receiver_.resident();
  std::optional<std::uint64_t> own_sizes;
  if (resident != nullptr) own_sizes = or_of_page_sizes(resident->ram());
  MD_CHECK(state_.advise(advise, own_sizes, memory_began));
  if (resident != nullptr && resident->guest_space() != nullptr)
    MD_CHECK(postcopy::check_userfaultfd(resident->ram(), *resident->guest_space()));
  return {};
}

Result<void> PostcopyDestination::begin_memory(Machine& machine, std::span<const stream::RamSetupBlock> blocks) {
  machine_ = &machine;
  ram::RamMap& map = machine.ram();
  const bool runs = machine.guest_space() != nullptr;
  std::vector<BlockShape> shapes(map.size());
  for (const stream::RamSetupBlock& block : blocks) {
    MD_TRY(const std::size_t index, map.find(block.name));
    const std::uint64_t wire_page = block.page_size.value_or(page_bytes);
    if (runs && wire_page != map.at(index).backing_page()) {
      return machine_error(
          fmt::format("block '{}': pages of {} bytes at the source, of {} here (postcopy needs the "
                      "same)",
                      printable(block.name), wire_page, map.at(index).backing_page()));
    }
    if (wire_page >= std::uint64_t{1} << 30) {
      log::warning(fmt::format("block '{}' has pages of {} bytes: each is waited for as a whole", printable(block.name),
                               wire_page));
    }
    shapes[index] = {block.name, block.used_length / page_bytes, wire_page / page_bytes};
  }
  placed_ = shapes;
  // Nobody runs in a parked machine, so its pages may arrive in parts.
  if (!runs) {
    for (BlockShape& shape : placed_) shape.host_pages = 1;
  }
  pages_ = std::make_unique<postcopy::DestinationPages>(std::move(shapes));
  MD_CHECK(postcopy::forbid_huge_pages(map, machine.guest_space()));
  for (std::size_t i = 0; i < map.size(); ++i) {
    MD_CHECK(map.at(i).punch(0, map.at(i).length()));
    MD_CHECK(map.at(i).reserve());
  }
  return {};
}

ram::PageStore& PostcopyDestination::noting(ram::PageStore& store) {
  if (!pages_) return store;
  noting_ = std::make_unique<postcopy::NotingStore>(store, *pages_);
  return *noting_;
}

Result<void> PostcopyDestination::discard(const stream::command::PostcopyRamDiscard& discard) {
  if (!pages_) return wire_error("POSTCOPY_RAM_DISCARD without POSTCOPY_ADVISE, or before the memory's list");
  ram::RamMap& map = machine_->ram();
  const auto found = map.find(discard.block);
  if (!found) return wire_error(fmt::format("POSTCOPY_RAM_DISCARD: {}", found.error().text()));
  MD_CHECK(state_.discard(discard, pages_->blocks()[*found]));
  for (const auto& range : discard.ranges) {
    MD_CHECK(map.at(*found).punch(range.start, range.length));
    pages_->note_dropped(*found, range.start / page_bytes, range.length / page_bytes);
  }
  return map.at(*found).reserve();
}

// --- the switch
// ---------------------------------------------------------------------------------------------------------

Result<void> PostcopyDestination::receive_package(const stream::command::Packaged& packaged,
                                                  transports::BufferedReader& reader, std::uint32_t ram_section_id,
                                                  std::span<const DeviceSection> early) {
  MD_CHECK(state_.package(packaged, pages_ != nullptr));
  auto bytes = read_whole(reader, packaged.length);
  if (!bytes) return std::move(bytes).error().with(fmt::format("package of {} bytes", packaged.length));
  std::vector<std::uint32_t> used_ids;
  for (const DeviceSection& section : early) used_ids.push_back(section.section_id);
  MD_TRY(package_, postcopy::parse_package(*bytes, ram_section_id, std::move(used_ids)));
  ram_section_id_ = ram_section_id;
  if (!control_.commit()) return cancelled_error();
  return {};
}

Result<void> PostcopyDestination::complete(DestinationLink link, std::vector<DeviceSection> early) {
  link_ = std::move(link);
  auto running = listen();
  if (running) running = load_and_run(std::move(early));
  if (!running) {
    undo_listen();
    return running;
  }
  MD_CHECK(receive_all());
  return finish();
}

Result<void> PostcopyDestination::listen() {
  MD_CHECK(state_.listen());
  return_channel_ = std::make_unique<postcopy::ReturnChannel>(pages_->blocks());
  MD_CHECK(return_channel_->open(*link_.main));
  if (auto* const space = machine_->guest_space()) {
    auto memory = postcopy::GuestMemory::open(machine_->ram(), *space);
    if (!memory) return std::move(memory).error().with("postcopy listen");
    guest_memory_ = memory->get();
    placer_ = std::move(*memory);
    if (plan_->blocktime) pages_->start_blocktime(machine_->vcpus());
    MD_TRY(faults_, postcopy::FaultThread::start(*guest_memory_, *pages_, *return_channel_));
  } else {
    placer_ = std::make_unique<postcopy::MemoryPlacer>(machine_->ram());
  }
  log::info("postcopy: {} pages of memory are still to come", pages_->missing());
  events_.status(MigrationStatus::postcopy_active);
  return start_receiving();
}

// Also after a recovery.
Result<void> PostcopyDestination::start_receiving() {
  if (link_.preempt) link_.preempt_reader = std::make_unique<transports::BufferedReader>(*link_.preempt);
  control_.watch(link_.preempt ? std::vector{link_.main.get(), link_.preempt.get()} : std::vector{link_.main.get()});
  // 10.3: QEMU writes an end mark with machines up to 7.2.
  const auto version = machine_version(machine_->configuration().machine_name);
  const bool mark_due = version && *version <= MachineVersion{7, 2};
  MD_TRY(pages_reader_, postcopy::PageReceiver::start({*link_.reader, link_.preempt_reader.get(), *pages_, placed_,
                                                       *placer_, *return_channel_, counters_, ram_section_id_,
                                                       mark_due ? postcopy::PageReceiver::long_mark_wait
                                                                : postcopy::PageReceiver::short_mark_wait}));
  if (guest_memory_ == nullptr) {
    MD_TRY(puller_, postcopy::PagePuller::start(*pages_, *return_channel_));
  }
  return {};
}

Result<void> PostcopyDestination::load_and_run(std::vector<DeviceSection> early) {
  DeviceState devices;
  devices.sections = std::move(early);
  std::move(package_->sections.begin(), package_->sections.end(), std::back_inserter(devices.sections));
  auto received_state = machine_->load_devices(std::move(devices));
  if (!received_state) return std::move(received_state).error().with("load the devices");
  // A source that is gone is found gone by its pages' reader.
  for (const std::uint32_t ping : package_->pings) {
    [[maybe_unused]] const auto sent = return_channel_->send(stream::reply::Pong{ping});
  }
  // The daemon ends: better that nobody runs it than that it runs for a moment.
  MD_CHECK(machine_->ram().check());
  if (stop_.requested()) return cancelled_error();
  MD_CHECK(state_.run());
  run_control_.incoming_loaded(*machine_, *received_state);
  machine_->note_outcome(MachineOutcome::arrived, "migrated here by postcopy");
  start_arrived(run_control_, events_);
  return {};
}

// Before RUN: nobody runs, so nobody waits, and the memory is as empty as before. The source is told, for it may take
// the machine back then: nobody will run it here.
void PostcopyDestination::undo_listen() {
  if (return_channel_) {
    [[maybe_unused]] const auto told = return_channel_->send(stream::reply::Shut{1});
  }
  close_link();
  faults_.reset();
  if (guest_memory_ == nullptr) return;
  if (auto closed = guest_memory_->close(); !closed) log::error("postcopy: {}", closed.error().text());
}

// --- pages
// ----------------------------------------------------------------------------------------------------------------

Result<void> PostcopyDestination::receive_all() {
  while (true) {
    auto received = pages_reader_ ? pages_reader_->wait() : Result<void>(cancelled_error());
    count_received();
    if (received) return {};
    if (stop_.requested()) {
      // Whoever waits must not go on with what never came.
      lose();
      close_link();
      return machine_error(fmt::format("postcopy: the daemon ends and {} pages never came", pages_->missing()));
    }
    recover(std::move(received).error());
  }
}

void PostcopyDestination::lose() {
  lost_ = true;
  run_control_.incoming_lost();
  if (guest_memory_ == nullptr) return;
  // In another process who waits goes on waiting by itself.
  stranded_ = machine_->guest_space()->is_here();
  guest_memory_->abandon();
}

void PostcopyDestination::count_received() {
  progress_.normal_pages = progress_.normal_pages.load() + counters_.normal_pages.exchange(0);
  progress_.zero_pages = progress_.zero_pages.load() + counters_.zero_pages.exchange(0);
  std::uint64_t bytes = link_.reader ? link_.reader->total_read() : 0;
  if (link_.preempt_reader) bytes += link_.preempt_reader->total_read();
  progress_.transferred = progress_.transferred.load() + bytes;
}

// The threads of the connection end, in the order in which they could wait for each other.
void PostcopyDestination::close_link() {
  control_.watch({});
  // First of all: who writes a request to a source that does not read holds the return channel's lock.
  if (link_.main) link_.main->shutdown();
  if (return_channel_) return_channel_->close();
  pages_reader_.reset();
  puller_.reset();
  link_ = {};
}

// Paused until a new connection stands. Returns early only for the stop.
void PostcopyDestination::recover(Error why) {
  const bool by_user = control_.take_broken();
  close_link();
  if (by_user) why = Error(ErrorKind::io, "Postcopy migration is paused by the user");
  while (!stop_.requested()) {
    pages_->forget_partial();
    log::warning(fmt::format("postcopy: the connection is lost ({}); {} pages are still to come", why.text(),
                             pages_->missing()));
    events_.paused(why);
    auto connected = reconnect();
    if (connected) return;
    close_link();
    why = std::move(connected).error();
  }
}

Result<void> PostcopyDestination::reconnect() {
  while (true) {
    MD_TRY(const auto offer, control_.await_offer(stop_));
    auto connected = connect(*offer);
    if (!connected && offer->replaced->requested() && !link_.main) continue;
    control_.forget_offer();
    if (!connected) return connected;
    events_.status(MigrationStatus::postcopy_recover);
    log::info("postcopy: recovery from {}", link_.main->describe());
    auto shaken = shake_hands(*offer);
    if (!shaken) return std::move(shaken).error().with("postcopy: recovery");
    return {};
  }
}

Result<void> PostcopyDestination::connect(RecoveryControl::Offer& offer) {
  if (auto* const listener = offer.target.listener()) {
    ExpectedSource expected;
    expected.preempt = wants_preempt();
    expected.replaced = offer.replaced.get();
    // RECV_BITMAP for a block of any name: the three bytes before its length.
    ByteWriter begins;
    stream::encode_command(begins, stream::command::RecvBitmap{"x"});
    expected.main_begins = std::move(begins).take();
    expected.main_begins.resize(3);
    MD_TRY(auto source, accept_source(*listener, stop_, expected));
    link_.main = std::move(source.main);
    link_.preempt = std::move(source.preempt);
  } else {
    MD_TRY(link_.main, offer.target.take_channel(stop_));
  }
  link_.reader = std::make_unique<transports::BufferedReader>(*link_.main);
  control_.watch({link_.main.get()});
  return {};
}

// docs/spec/postcopy.md section 12.3: the source asks what was received of each block, then says RESUME.
Result<void> PostcopyDestination::shake_hands(RecoveryControl::Offer& offer) {
  for (bool resumed = false; !resumed;) {
    MD_TRY(const auto element, ram::decode_next(*link_.reader, stream::decode_element));
    const auto* const command = std::get_if<stream::Command>(&element);
    if (command == nullptr) return wire_error("pages before RESUME");
    MD_TRY(resumed, answer_handshake(*command));
  }
  if (wants_preempt() && !link_.preempt) MD_CHECK(accept_urgent(offer));
  MD_CHECK(return_channel_->open(*link_.main, stream::reply::ResumeAck{}));
  events_.status(MigrationStatus::postcopy_active);
  MD_CHECK(ask_again());
  return start_receiving();
}

Result<bool> PostcopyDestination::answer_handshake(const stream::Command& command) {
  if (std::holds_alternative<stream::command::PostcopyResume>(command)) return true;
  if (const auto* wanted = std::get_if<stream::command::RecvBitmap>(&command)) {
    const auto found = machine_->ram().find(wanted->block);
    if (!found) return wire_error(fmt::format("RECV_BITMAP: {}", found.error().text()));
    MD_CHECK(postcopy::ReturnChannel::send_bitmap(*link_.main, wanted->block, pages_->received_bitmap(*found)));
    return false;
  }
  if (const auto* ping = std::get_if<stream::command::Ping>(&command)) {
    MD_CHECK(postcopy::ReturnChannel::send_to(*link_.main, stream::reply::Pong{ping->value}));
    return false;
  }
  return wire_error(fmt::format("command {} in its place", stream::command_name(command)));
}

// QEMU 10.0 makes it before RESUME, 7.2 behind the main one.
Result<void> PostcopyDestination::accept_urgent(RecoveryControl::Offer& offer) {
  auto* const listener = offer.target.listener();
  if (listener == nullptr) return wire_error("preempt channel: this transport has one connection only");
  MD_TRY(link_.preempt, accept_preempt(*listener, stop_, *link_.main));
  return {};
}

// The fault thread goes on meanwhile: what it asks for twice the source sends once.
Result<void> PostcopyDestination::ask_again() {
  for (const postcopy::HostPage& page : pages_->outstanding_pages()) {
    if (!return_channel_->request(page)) return Error(ErrorKind::io, "the requests could not be repeated");
  }
  return {};
}

Result<void> PostcopyDestination::finish() {
  control_.watch({});
  puller_.reset();
  pages_reader_.reset();
  // First the thread that reads the faults, then the memory: who faults in between is woken by the unregistering, and
  // everything is there by now.
  faults_.reset();
  if (guest_memory_ != nullptr) {
    if (auto closed = guest_memory_->close(); !closed) {
      lose();
      return std::move(closed).error().with("postcopy: give the memory to the guest");
    }
  }
  blocktime_ = pages_->blocktime();
  MD_CHECK(state_.end());
  auto told = return_channel_->send(stream::reply::Shut{0});
  if (!told) log::warning(fmt::format("the source could not be told of the success: {}", told.error().text()));
  return_channel_->close();
  return {};
}

}  // namespace migrationd::migration
