// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/attached.hpp"

#include "base/log.hpp"
#include "daemon/machine/attached_state.hpp"
#include "daemon/machine/guest_record.hpp"
#include "daemon/machine/own_descriptors.hpp"
#include "guest/sealed_state.hpp"
#include "ram/dirty_log_factory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace migrationd {
namespace {

constexpr std::uint32_t first_attached_section = 2;
// For a guest to answer what is under way when it is handed over. Its own deadline bounds the answer; beyond this it is
// said to hang, and stays.
constexpr std::chrono::seconds let_go_wait{5};

// What the standing looks like to the code that makes streams.
std::vector<guest::AddDevice> standing_device() {
  guest::AddDevice device;
  device.id = std::string(standing_section);
  device.version = standing_version;
  device.minimum_version = standing_version;
  return {device};
}

Bytes undo_by(guest::Type type) { return guest::packet(static_cast<std::uint16_t>(type), 0, guest::Empty{}); }

guest::Purpose purpose_of(ram::WatchPurpose purpose) noexcept {
  switch (purpose) {
    case ram::WatchPurpose::protect_async:
      return guest::Purpose::protect_async;
    case ram::WatchPurpose::protect_sync:
      return guest::Purpose::protect_sync;
    case ram::WatchPurpose::missing:
      break;
  }
  return guest::Purpose::missing;
}

}  // namespace

// --- the guest's address space --------------------------------------------------------------------------------------

Result<ram::Watch> AttachedSpace::watch(ram::WatchPurpose purpose, std::uint64_t features) {
  const guest::Unwatch unwatch_body{purpose_of(purpose)};
  MD_TRY(GuestMessage answer,
         link_->ask(guest::Type::watch, guest::Watch{purpose_of(purpose), features}, 1, -1,
                    guest::packet(static_cast<std::uint16_t>(guest::Type::unwatch), 0, unwatch_body)));
  const auto adopt = [&]() -> Result<ram::Watch> {
    const bool paged = purpose == ram::WatchPurpose::protect_async;
    if (answer.fds.size() != (paged ? 2 : 1))
      return wire_error(fmt::format("the guest answered WATCH with {} descriptors", answer.fds.size()));
    MD_TRY(auto userfault, ram::Userfaultfd::adopt(std::move(answer.fds[0])));
    std::optional<ram::PagemapScanner> pages;
    if (paged) {
      MD_TRY(pages, ram::PagemapScanner::adopt(std::move(answer.fds[1])));
    }
    return ram::Watch{std::move(userfault), std::move(pages)};
  };
  auto watch = adopt();
  if (!watch) unwatch(purpose);
  return watch;
}

void AttachedSpace::unwatch(ram::WatchPurpose purpose) noexcept {
  if (link_->lost()) return;
  auto ended = link_->ask(guest::Type::unwatch, guest::Unwatch{purpose_of(purpose)});
  if (!ended) log::warning(ended.error().text());
}

Result<void> AttachedSpace::forbid_huge_pages(const ram::RamMap&) {
  MD_CHECK(link_->ask(guest::Type::no_huge_pages, guest::Empty{}));
  return {};
}

// --- the machine ----------------------------------------------------------------------------------------------------

AttachedMachine::AttachedMachine(std::shared_ptr<GuestLink> link, RegisteredGuest guest,
                                 std::shared_ptr<ram::GivenBackPages> given_back)
    : link_(std::move(link)),
      guest_(std::move(guest)),
      given_back_(std::move(given_back)),
      running_(guest_.ready.state == guest::GuestState::running),
      has_state_(guest_.ready.state != guest::GuestState::empty) {
  configuration_.machine_name = guest_.hello.machine_name;
  const auto& uuid = guest_.ready.uuid;
  if (std::any_of(uuid.begin(), uuid.end(), [](std::uint8_t byte) { return byte != 0; })) {
    configuration_.uuid.emplace();
    std::memcpy(configuration_.uuid->data(), uuid.data(), uuid.size());
  }
}

Result<std::unique_ptr<AttachedMachine>> AttachedMachine::create(std::shared_ptr<GuestLink> link, RegisteredGuest guest,
                                                                 std::shared_ptr<ram::GivenBackPages> given_back) {
  std::unique_ptr<AttachedMachine> machine(
      new AttachedMachine(std::move(link), std::move(guest), std::move(given_back)));
  MD_CHECK(machine->make_log());
  return machine;
}

Result<std::unique_ptr<AttachedMachine>> AttachedMachine::expect(std::shared_ptr<GuestLink> link, RegisteredGuest guest,
                                                                 std::shared_ptr<ram::GivenBackPages> given_back) {
  MD_TRY(auto machine, create(std::move(link), std::move(guest), std::move(given_back)));
  machine->running_.store(false, std::memory_order_release);
  machine->has_state_ = false;
  machine->silent_ = true;
  return machine;
}

Result<void> AttachedMachine::make_log() {
  space_ = std::make_unique<AttachedSpace>(guest_.addresses, link_);
  std::vector<bool> watched;
  for (const guest::Tracking tracking : guest_.tracking)
    watched.push_back(tracking == guest::Tracking::write_protect || tracking == guest::Tracking::both);
  std::unique_ptr<ram::DirtyLog> protection;
  if (std::find(watched.begin(), watched.end(), true) != watched.end()) {
    MD_TRY(protection, ram::make_dirty_log(guest_.ram, *space_, ram::DirtyLogKind::automatic,
                                           ram::BlockChoice(std::move(watched))));
  }
  std::unique_ptr<ram::DirtyLog> shared;
  if (std::any_of(guest_.bitmaps.begin(), guest_.bitmaps.end(), [](const auto& bitmap) { return bitmap != nullptr; }))
    shared = std::make_unique<ram::DirtyLogShared>(guest_.bitmaps, static_cast<ram::BitmapWriter&>(*this));
  log_ = std::make_unique<ram::DirtyLogUnion>(std::move(protection), std::move(shared), *given_back_);
  return {};
}

Result<void> AttachedMachine::log_writes(bool on) {
  Bytes undo;
  if (on) undo = guest::packet(static_cast<std::uint16_t>(guest::Type::dirty_log), 0, guest::DirtyLogSwitch{false});
  MD_CHECK(link_->ask(guest::Type::dirty_log, guest::DirtyLogSwitch{on}, 1, -1, std::move(undo)));
  return {};
}

Result<void> AttachedMachine::settle_writes() {
  MD_CHECK(link_->ask(guest::Type::dirty_sync, guest::Empty{}));
  return {};
}

std::optional<std::string> AttachedMachine::untracked_block() const {
  for (std::size_t i = 0; i < guest_.tracking.size(); ++i) {
    if (guest_.tracking[i] == guest::Tracking::none) return guest_.ram.at(i).name();
  }
  return std::nullopt;
}

// --- run control ----------------------------------------------------------------------------------------------------

Result<void> AttachedMachine::resume() {
  if (!has_state_) return machine_error("the guest is empty: it waits for an incoming migration");
  if (is_running()) return {};
  if (const auto block = untracked_block(); block && log_->is_started()) {
    return machine_error(fmt::format(
        "nobody sees the writes to block '{}' of the guest: it cannot run while it is migrated", printable(*block)));
  }
  MD_CHECK(link_->ask(guest::Type::start, guest::Empty{}, 1, -1, undo_by(guest::Type::stop)));
  saved_.store(false, std::memory_order_release);
  running_.store(true, std::memory_order_release);
  return {};
}

Result<void> AttachedMachine::pause() {
  if (!is_running()) return {};
  MD_CHECK(link_->ask(guest::Type::stop, guest::Empty{}, 1, -1, undo_by(guest::Type::start)));
  running_.store(false, std::memory_order_release);
  return {};
}

void AttachedMachine::throttle(unsigned percent) noexcept {
  percent = std::min(percent, 99U);
  if (percent == std::exchange(throttle_, percent)) return;
  link_->tell(guest::Type::throttle, guest::Throttle{static_cast<std::uint8_t>(percent)});
}

void AttachedMachine::note_outcome(MachineOutcome what, const std::string& why) noexcept {
  guest::OutcomeNotice notice;
  notice.why = why;
  switch (what) {
    case MachineOutcome::left:
      notice.what = guest::Outcome::left;
      break;
    case MachineOutcome::stays:
      notice.what = guest::Outcome::stays;
      break;
    case MachineOutcome::arrived:
      notice.what = guest::Outcome::arrived;
      break;
  }
  if (!silent_ && !link_->lost()) link_->tell(guest::Type::outcome, notice);
}

// --- to another daemon ----------------------------------------------------------------------------------------------

Result<std::vector<cpr::NamedDescriptor>> AttachedMachine::share_descriptors() {
  MD_TRY(auto out, share_memory(guest_));
  MD_TRY(UniqueFd connection, link_->share_socket());
  MD_TRY(UniqueFd registration, guest::make_state(encode_registration(guest_)));
  out.push_back({std::string(own_descriptors), guest_connection_id, std::move(connection)});
  out.push_back({std::string(own_descriptors), guest_registration_id, std::move(registration)});
  return out;
}

Result<void> AttachedMachine::let_go() {
  MD_CHECK(link_->let_go(let_go_wait));
  last_serial_ = link_->last_serial();
  silent_ = true;
  return {};
}

void AttachedMachine::take_up() noexcept {
  if (!std::exchange(silent_, false)) return;
  link_->take_up(last_serial_);
}

Result<DeviceState> AttachedMachine::tell_standing(std::string_view run_state) const {
  GuestStanding standing;
  standing.state = is_running() ? guest::GuestState::running : guest::GuestState::paused;
  standing.last_serial = last_serial_;
  standing.last_blocker = last_blocker_;
  standing.blockers = blockers_;
  guest::StateSection section;
  section.id = std::string(standing_section);
  section.version = standing_version;
  section.body = encode_standing(standing);
  std::vector<guest::StateSection> sections;
  sections.push_back(std::move(section));
  return state_to_stream(std::move(sections), standing_device(), run_state, first_attached_section);
}

Result<std::optional<std::string>> AttachedMachine::take_standing(DeviceState state) {
  MD_TRY(const StreamState received, state_from_stream(std::move(state), standing_device()));
  if (received.sections.size() != 1) return wire_error("the guest's standing did not come");
  MD_TRY(GuestStanding standing, decode_standing(received.sections.front().body));
  last_serial_ = standing.last_serial;
  last_blocker_ = standing.last_blocker;
  blockers_ = std::move(standing.blockers);
  has_state_ = true;
  running_.store(standing.state == guest::GuestState::running, std::memory_order_release);
  return received.run_state;
}

// --- devices --------------------------------------------------------------------------------------------------------

Result<DeviceState> AttachedMachine::save_devices(std::string_view run_state) {
  if (silent_) return tell_standing(run_state);
  if (is_running()) return machine_error("save devices: the guest runs");
  if (!has_state_) return machine_error("save devices: the guest is empty");
  // From here on who works on the machine hears of the guest's death by its answer, or has all it needs.
  saved_.store(true, std::memory_order_release);
  auto saved = fetch_state(run_state);
  if (!saved) saved_.store(false, std::memory_order_release);
  return saved;
}

Result<DeviceState> AttachedMachine::fetch_state(std::string_view run_state) {
  MD_TRY(const GuestMessage answer, link_->ask(guest::Type::save, guest::Empty{}, GuestLink::state_patience));
  MD_TRY(const auto state, guest::decode<guest::StateLength>(answer.body));
  MD_TRY(const Bytes bytes, guest::read_state(answer.fds.front().get(), state.length));
  auto sections = guest::decode_state(bytes);
  if (!sections) return std::move(sections).error().with("the guest's state");
  auto saved = state_to_stream(std::move(*sections), guest_.devices, run_state, first_attached_section);
  if (!saved) return std::move(saved).error().with("the guest's state");
  return saved;
}

Result<std::optional<std::string>> AttachedMachine::load_devices(DeviceState state) {
  if (silent_) return take_standing(std::move(state));
  if (is_running()) return machine_error("load devices: the guest runs");
  MD_TRY(const StreamState received, state_from_stream(std::move(state), guest_.devices));
  MD_TRY(const Bytes bytes, guest::encode_state(received.sections));
  MD_TRY(const UniqueFd fd, guest::make_state(bytes));
  // What is half loaded is nothing that could run.
  has_state_ = false;
  MD_CHECK(link_->ask(guest::Type::load, guest::StateLength{bytes.size()}, GuestLink::state_patience, fd.get()));
  has_state_ = true;
  saved_.store(false, std::memory_order_release);
  return received.run_state;
}

Result<nlohmann::json> AttachedMachine::verify(const StopSource&) {
  return machine_error(
      "verify: only the guest knows what an attached machine's memory must hold; verify-machine is for synthetic "
      "machines");
}

// --- may it be migrated ---------------------------------------------------------------------------------------------

Result<void> AttachedMachine::check_may_leave(bool running) const {
  if (!blockers_.empty()) return machine_error(blockers_.back().second);
  for (const guest::AddDevice& device : guest_.devices) {
    if (device.unmigratable)
      return machine_error(fmt::format("State blocked by non-migratable device '{}'", device.id));
  }
  const auto block = untracked_block();
  if (!running || !block) return {};
  return machine_error(
      fmt::format("nobody sees the writes to block '{}' of the guest (it is registered without dirty tracking): stop "
                  "the machine first, or register it with write protection or a bitmap",
                  printable(*block)));
}

Result<void> AttachedMachine::check_may_arrive() const {
  // Nothing of the guest moves.
  if (silent_) return {};
  for (const guest::AddDevice& device : guest_.devices) {
    if (device.unmigratable)
      return machine_error(fmt::format("State blocked by non-migratable device '{}'", device.id));
  }
  return {};
}

std::vector<std::string> AttachedMachine::blocked_reasons() const {
  std::vector<std::string> reasons;
  for (const auto& [number, reason] : blockers_) reasons.push_back(reason);
  for (const guest::AddDevice& device : guest_.devices) {
    if (device.unmigratable) reasons.push_back("non-migratable device: " + device.id);
  }
  return reasons;
}

Result<std::uint32_t> AttachedMachine::add_blocker(std::string reason) {
  if (blockers_.size() >= guest::guest_blockers)
    return Error(ErrorKind::limit, fmt::format("more than {} blockers", guest::guest_blockers));
  // Shown as an int to C: never negative there.
  last_blocker_ = last_blocker_ % 0x7fffffffU + 1;
  blockers_.emplace_back(last_blocker_, printable(reason, guest::text_bytes));
  return last_blocker_;
}

Result<void> AttachedMachine::delete_blocker(std::uint32_t number) {
  const auto erased = std::erase_if(blockers_, [&](const auto& blocker) { return blocker.first == number; });
  if (erased == 0) return machine_error(fmt::format("there is no blocker {}", number));
  return {};
}

}  // namespace migrationd
