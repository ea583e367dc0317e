// SPDX-License-Identifier: Apache-2.0
//
// AttachedMachine: a guest in another process, which shares its memory and is asked for the rest.
//
// Its memory is here already (the memfds it registered); what the daemon needs of the guest beside is asked over its
// link: stop and start, the state of its devices, the means to watch its address space, the bits of a shared bitmap. A
// question is answered within the guest's deadline or fails: then the migration fails, and the machine stays where it
// is.
//
// Once the devices were saved the guest is not needed any more: memory and state are here, and a guest that dies then
// takes nothing along (needs_guest()).
//
// To another daemon of this host (docs/formats/update.md) it is handed over as it is: the guest runs on and is asked
// for nothing, its connection, its memory and what it registered go along.
//
// Thread: as Machine says; blockers on control. Members that ask the guest block for its deadline at most.
#pragma once

#include "daemon/machine/guest_link.hpp"
#include "daemon/machine/guest_registration.hpp"
#include "daemon/machine/machine.hpp"
#include "ram/dirty_log_shared.hpp"

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace migrationd {

// The guest's address space, watched with descriptors that the guest makes.
class AttachedSpace final : public ram::GuestSpace {
 public:
  AttachedSpace(std::vector<std::byte*> addresses, std::shared_ptr<GuestLink> link) noexcept
      : GuestSpace(std::move(addresses)), link_(std::move(link)) {}

  bool is_here() const noexcept override { return false; }
  Result<ram::Watch> watch(ram::WatchPurpose purpose, std::uint64_t features) override;
  void unwatch(ram::WatchPurpose purpose) noexcept override;
  Result<void> forbid_huge_pages(const ram::RamMap& map) override;

 private:
  std::shared_ptr<GuestLink> link_;
};

class AttachedMachine final : public Machine, private ram::BitmapWriter {
 public:
  // `given_back`: where the link's listener notes what the guest gives back.
  static Result<std::unique_ptr<AttachedMachine>> create(std::shared_ptr<GuestLink> link, RegisteredGuest guest,
                                                         std::shared_ptr<ram::GivenBackPages> given_back);

  // Of a guest that another daemon serves still: empty until load_devices() has brought its standing, and silent until
  // take_up(). `link`: prepared.
  static Result<std::unique_ptr<AttachedMachine>> expect(std::shared_ptr<GuestLink> link, RegisteredGuest guest,
                                                         std::shared_ptr<ram::GivenBackPages> given_back);

  MachineKind kind() const noexcept override { return MachineKind::attached; }
  ram::RamMap& ram() noexcept override { return guest_.ram; }
  const MachineConfiguration& configuration() const noexcept override { return configuration_; }
  std::uint32_t ram_section_id() const noexcept override { return 1; }

  bool is_running() const noexcept override { return running_.load(std::memory_order_acquire); }
  Result<void> resume() override;
  Result<void> pause() override;
  void throttle(unsigned percent) noexcept override;
  ram::GuestSpace* guest_space() noexcept override { return space_.get(); }
  std::size_t vcpus() const noexcept override { return guest_.hello.vcpus; }
  ram::DirtyLog* dirty_log() noexcept override { return log_.get(); }

  Result<DeviceState> save_devices(std::string_view run_state) override;
  Result<std::optional<std::string>> load_devices(DeviceState state) override;
  Result<nlohmann::json> verify(const StopSource& stop) override;

  Result<std::vector<cpr::NamedDescriptor>> share_descriptors() override;
  bool goes_on_alone() const noexcept override { return true; }
  Result<void> let_go() override;
  void take_up() noexcept override;

  Result<void> check_may_leave(bool running) const override;
  Result<void> check_may_arrive() const override;
  std::vector<std::string> blocked_reasons() const override;
  void note_outcome(MachineOutcome what, const std::string& why) noexcept override;
  bool needs_guest() const noexcept override { return !saved_.load(std::memory_order_acquire); }

  // Blockers (control thread): the number to delete it by.
  Result<std::uint32_t> add_blocker(std::string reason);
  Result<void> delete_blocker(std::uint32_t number);
  const std::vector<guest::AddDevice>& devices() const noexcept { return guest_.devices; }

 private:
  AttachedMachine(std::shared_ptr<GuestLink> link, RegisteredGuest guest,
                  std::shared_ptr<ram::GivenBackPages> given_back);
  Result<void> make_log();
  Result<DeviceState> fetch_state(std::string_view run_state);
  Result<DeviceState> tell_standing(std::string_view run_state) const;
  Result<std::optional<std::string>> take_standing(DeviceState state);
  Result<void> log_writes(bool on) override;
  Result<void> settle_writes() override;
  std::optional<std::string> untracked_block() const;

  std::shared_ptr<GuestLink> link_;
  RegisteredGuest guest_;
  std::shared_ptr<ram::GivenBackPages> given_back_;
  MachineConfiguration configuration_;
  std::unique_ptr<AttachedSpace> space_;
  std::unique_ptr<ram::DirtyLogUnion> log_;
  std::atomic<bool> running_;
  std::atomic<bool> saved_{false};
  bool has_state_;  // false: empty, waits for a stream
  // With another daemon's doing: let go of here, or not yet taken up.
  bool silent_ = false;
  std::uint32_t last_serial_ = 0;  // of the questions of the daemon before
  unsigned throttle_ = 0;
  std::vector<std::pair<std::uint32_t, std::string>> blockers_;  // oldest first
  std::uint32_t last_blocker_ = 0;
};

}  // namespace migrationd
