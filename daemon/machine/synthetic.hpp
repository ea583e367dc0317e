// SPDX-License-Identifier: Apache-2.0
//
// SyntheticMachine: a guest made here, for tests, measurements and demonstrations.
//
// It has two blocks of memory ("synthetic.ram", and "synthetic.rom" that nobody writes), threads that write pages of
// the first at a set rate, and a few described devices. Memory is mapped twice: the engine view is migrationd's, the
// guest view is where the threads write and what the dirty log watches. At any pause verify() proves of every page of
// both blocks that it is neither lost, nor stale, nor torn, nor misplaced, and reads no hole while doing so.
//
// What the guest is (working set, threads, rate, seed) travels in its device state and is adopted by the machine that
// loads it; only size and backing of the memory must be the same there.
//
// Thread: as Machine says. The guest's threads live from construction or load to destruction.
#pragma once

#include "base/unique_fd.hpp"
#include "daemon/machine/machine.hpp"
#include "daemon/machine/synthetic_devices.hpp"
#include "daemon/machine/synthetic_guest.hpp"
#include "daemon/machine/synthetic_options.hpp"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd {

inline constexpr std::string_view synthetic_machine_name = "migrationd-synthetic-1";
inline constexpr std::string_view synthetic_ram_name = "synthetic.ram";
inline constexpr std::string_view synthetic_rom_name = "synthetic.rom";
inline constexpr std::uint64_t synthetic_rom_bytes = std::uint64_t{256} << 10;

// Whether memory gets its first content here, or comes over a stream.
enum class SyntheticStart : std::uint8_t { filled, empty };

class SyntheticMachine final : public Machine {
 public:
  // Paused. `uuid`: 16 raw bytes for the configuration section. Fails when huge pages or the means to see writes
  // are missing, or the log cannot be opened.
  static Result<std::unique_ptr<SyntheticMachine>> create(const SyntheticOptions& options, SyntheticStart start,
                                                          std::optional<stream::Uuid> uuid = std::nullopt);

  // Over the memory that another process of this host handed over; its devices come with the stream. Takes the memory
  // out of `descriptors`.
  static Result<std::unique_ptr<SyntheticMachine>> create_over(const SyntheticOptions& options,
                                                               std::vector<cpr::NamedDescriptor>& descriptors);

  MachineKind kind() const noexcept override { return MachineKind::synthetic; }
  ram::RamMap& ram() noexcept override { return ram_; }
  const MachineConfiguration& configuration() const noexcept override { return configuration_; }
  std::uint32_t ram_section_id() const noexcept override { return 1; }

  bool is_running() const noexcept override { return running_.load(std::memory_order_acquire); }
  Result<void> resume() override;
  Result<void> pause() override;
  void throttle(unsigned percent) noexcept override;
  ram::GuestSpace* guest_space() noexcept override { return space_.get(); }
  std::size_t vcpus() const noexcept override { return devices_.guest.threads; }
  ram::DirtyLog* dirty_log() noexcept override { return dirty_log_.get(); }

  Result<std::vector<cpr::NamedDescriptor>> share_descriptors() override;

  std::vector<std::string> blocked_reasons() const override;
  Result<void> check_may_leave(bool running) const override;
  Result<DeviceState> save_devices(std::string_view run_state) override;
  Result<std::optional<std::string>> load_devices(DeviceState state) override;

  // {"checked-pages": N, "pages-with-data": M, "writes": pages written in its life, "ticks": N, "handovers": N,
  //  "instance": UUID}. Paused machine only. An error names block, page, and the generation expected and found.
  Result<nlohmann::json> verify(const StopSource& stop) override;

  // Differs for every machine object that ever was: the log's first word.
  const std::string& instance() const noexcept { return instance_; }

 private:
  SyntheticMachine() = default;

  static Result<std::unique_ptr<SyntheticMachine>> begin(const SyntheticOptions& options);
  void settle(const SyntheticOptions& options);
  Result<void> make_memory(const SyntheticOptions& options);
  Result<void> take_memory(const SyntheticOptions& options, std::vector<cpr::NamedDescriptor>& descriptors);
  Result<void> watch_memory(const SyntheticOptions& options);
  void fill();
  void adopt(synthetic::Devices devices);
  void take_counters();
  synthetic::GuestShape shape() const;

  ram::RamMap ram_;
  std::vector<ram::Mapping> views_;  // one per block
  std::unique_ptr<ram::LocalSpace> space_;
  std::unique_ptr<ram::DirtyLog> dirty_log_;
  vmstate::Blockers blockers_;  // unchanged once the machine is made
  MachineConfiguration configuration_;
  std::string instance_;
  UniqueFd log_;
  synthetic::Devices devices_;  // as of the last pause
  std::size_t page_size_ = ram::page_size;
  unsigned throttle_ = 0;
  bool has_guest_ = false;  // false: empty, waits for a stream
  std::atomic<bool> running_{false};
  std::unique_ptr<synthetic::GuestThreads> threads_;  // last: ends before what it uses
};

}  // namespace migrationd
