// SPDX-License-Identifier: Apache-2.0
//
// Machine: what is migrated. Memory, dirty log, devices, run control.
//
// The migration code knows no more of a machine than this. Three kinds exist: parked (opaque devices, never runs),
// synthetic (runs built-in threads) and attached (runs in another process).
//
// Thread: members are called by the one thread that works on the machine: the mover during a migration, a worker
// during verify-machine and calc-dirty-rate, control else. resume() and pause() are called under RunControl's mutex.
// is_running() and the constant members may be called by any thread.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/cpr/cpr_state.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/dirty_log.hpp"
#include "ram/guest_space.hpp"
#include "ram/page_origin.hpp"
#include "ram/ram_map.hpp"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd {

enum class MachineKind : std::uint8_t { parked, synthetic, attached };

// What became of a machine, for its guest to know.
enum class MachineOutcome : std::uint8_t { left, stays, arrived };

// The configuration section without its validated capabilities (stream.md section 3): those belong to a
// migration, not to the machine.
struct MachineConfiguration {
  std::string machine_name;                       // "pc-i440fx-7.2", "migrationd-synthetic-1"
  std::optional<stream::Uuid> uuid;               // as received; nothing: the stream carried none
  std::optional<stream::Uuid> multifd_uuid;       // as its multifd channels said; goes on over such channels only
  std::optional<std::uint32_t> target_page_bits;  // only if the stream had it
  bool switchover_start = false;                  // send COMMAND 11 (machines of QEMU 10.0 on)
};

// One FULL section, ready for the wire: everything behind the type byte up to and including the footer.
using DeviceSection = stream::DeviceSection;

struct DeviceState {
  std::vector<DeviceSection> sections;  // in stream order
  // The JSON text of the vmdescription, or nothing when the stream came without one (a dummy is sent then).
  std::optional<std::string> description;
};

class Machine {
 public:
  virtual ~Machine() = default;

  virtual MachineKind kind() const noexcept = 0;
  virtual ram::RamMap& ram() noexcept = 0;
  virtual const MachineConfiguration& configuration() const noexcept = 0;
  // The id the machine's `ram` section had; another one is chosen when a device has it.
  virtual std::uint32_t ram_section_id() const noexcept = 0;

  // --- run control: "running" is what the guest does; a parked machine never runs ---------------------
  virtual bool is_running() const noexcept = 0;
  virtual Result<void> resume() = 0;
  // Fails, and the guest runs on, when a thread of it does not come to rest: it waits for a page that is not here.
  virtual Result<void> pause() = 0;
  // Slows the guest down: 0 = full speed, 99 = nearly stopped. Auto-converge.
  virtual void throttle(unsigned percent) noexcept = 0;

  // Where the pages are, when they are not in ram(): a machine opened lazily from a file, whose ram() is empty and must
  // not be read. Null: they are in ram().
  virtual ram::PageOrigin* page_origin() noexcept { return nullptr; }

  // Where the guest runs; null: nothing runs. For faults on pages that are still to come.
  virtual ram::GuestSpace* guest_space() noexcept { return nullptr; }
  // How many threads of the guest may wait for a page.
  virtual std::size_t vcpus() const noexcept { return 0; }

  // Null when nothing can write the memory (parked): every page is sent once.
  virtual ram::DirtyLog* dirty_log() noexcept = 0;

  // Sections that were sent between START ram and the first PART (stream.md section 7), and go there again.
  virtual std::vector<DeviceSection> early_sections() const { return {}; }

  // --- devices ------------------------------------------------------------------------------------------
  // Paused machine only; without early_sections(). `run_state` is the name the globalstate section shall carry
  // ("running", "paused", ...).
  virtual Result<DeviceState> save_devices(std::string_view run_state) = 0;
  // Replaces the state of the devices; the machine is paused. Returns the run state the stream named, if any.
  virtual Result<std::optional<std::string>> load_devices(DeviceState state) = 0;

  // --- to another process of this host (docs/formats/cpr.md) ------------------------------------------------
  // What goes along by name: the memory of every block, as files of at least the blocks' lengths, and whatever else the
  // next process shall have. Duplicates, in the order of the list. The error is the whole text of the refusal.
  virtual Result<std::vector<cpr::NamedDescriptor>> share_descriptors() {
    return machine_error("this machine's memory cannot be handed to another process");
  }
  // Its guest is another process, whose connection goes along too: it need not stand still. Then the three members
  // below take the place of pause() and resume().
  virtual bool goes_on_alone() const noexcept { return false; }
  // Nothing of the guest is read or answered here any more, and it is asked for nothing; save_devices() gives what the
  // next process needs to go on with it. The error leaves all as it was.
  virtual Result<void> let_go() { return {}; }
  // Of the machine that let go, or of one that was made to go on with the guest and has loaded its state: the guest is
  // served here from now on.
  virtual void take_up() noexcept {}

  // --- may it be migrated -------------------------------------------------------------------------------
  // `running`: it runs now. The error is the whole text of the refusal.
  virtual Result<void> check_may_leave(bool) const { return {}; }
  virtual Result<void> check_may_arrive() const { return {}; }
  // Why an outgoing migration would be refused; control thread.
  virtual std::vector<std::string> blocked_reasons() const { return {}; }
  // Tells the guest, which may have to end with its machine. Never waits for it.
  virtual void note_outcome(MachineOutcome, const std::string&) noexcept {}
  // False when memory and devices are all here: a guest that dies takes nothing along. Any thread.
  virtual bool needs_guest() const noexcept { return true; }

  // Checks the guest's memory pattern; {"checked-pages": N, ...}. Only machines that have one. Takes as long as reading
  // the memory does; `stop` ends it within a few milliseconds with ErrorKind::cancelled.
  virtual Result<nlohmann::json> verify(const StopSource& stop) = 0;
};

}  // namespace migrationd
