// SPDX-License-Identifier: Apache-2.0
//
// MigrationDestination: a machine arrives.
//
// run() is a list of phases on the mover thread. The machine exists for the daemon only when the last one has
// succeeded: the stream was read to its end and every byte of device state accounted for, every block's list
// checked, the devices loaded. Then the source is answered (SHUT 0), and only then may the guest run: so whatever
// fails before leaves the machine with the source, and what fails after cannot take it back
// (docs/architecture.md, "Whose machine is it").
//
// A source that advised postcopy may switch to it at any moment of the RAM phase: then the rest is
// PostcopyDestination's.
//
// Thread: constructed on control, run() on the mover.
#pragma once

#include "base/stop.hpp"
#include "daemon/machine/machine.hpp"
#include "daemon/machine/receiver.hpp"
#include "daemon/migration/mover_events.hpp"
#include "daemon/migration/plan.hpp"
#include "daemon/migration/recovery_control.hpp"
#include "daemon/migration/run_control.hpp"
#include "postcopy/destination_blocktime.hpp"
#include "protocol/cpr/cpr_state.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/return_path.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/counters.hpp"
#include "ram/file_guard.hpp"
#include "ram/mapped_loader.hpp"
#include "transports/buffered.hpp"
#include "transports/listen.hpp"

#include <memory>
#include <optional>
#include <vector>

namespace migrationd::migration {
class PostcopyDestination;
}
namespace migrationd::ram {
class MultifdReceiver;
class PageStore;
class RamSectionReader;
class RdmaChannel;
class RdmaReceiver;
class StreamIndex;
}  // namespace migrationd::ram
namespace migrationd::stream {
class DeviceTail;
}

namespace migrationd::migration {

struct DestinationOutcome {
  Result<void> result;
  std::unique_ptr<Machine> machine;  // the new machine, if the receiver made one and all went well
  // By postcopy it had come, and its memory never will.
  bool lost = false;
  // A guest waits for pages that will never come: its machine must outlive everything but the process.
  bool stranded = false;
  std::optional<postcopy::BlocktimeReport> blocktime;  // of a postcopy, with the capability
};

class MigrationDestination {
 public:
  MigrationDestination(DestinationPlan plan, transports::IncomingTarget target,
                       std::unique_ptr<MachineReceiver> receiver, std::optional<stream::Uuid> own_uuid,
                       RunControl& run_control, Progress& progress, MoverEvents& events, StopSource& stop,
                       RecoveryControl& recovery);
  ~MigrationDestination();

  // Before run(), of a plan whose memory is here.
  void take_descriptors(std::vector<cpr::NamedDescriptor> descriptors) { descriptors_ = std::move(descriptors); }

  DestinationOutcome run();

 private:
  Result<void> run_phases();
  Result<void> take_memory();
  Result<void> accept();
  Result<void> read_preamble();
  Result<void> read_until_ram_end();
  Result<void> complete_postcopy();
  Result<void> read_devices();
  Result<void> load_devices();
  Result<void> answer();

  Result<void> handle_element(const stream::Element& element);
  Result<void> handle_command(const stream::Command& command);
  Result<void> take_package(const stream::command::Packaged& packaged);
  Result<void> start_channels();
  Result<void> begin_ram(const stream::SectionHeader& header);
  Result<std::vector<stream::RamSetupBlock>> read_block_list();
  Result<void> prepare_store(const std::vector<stream::RamSetupBlock>& blocks);
  void drop_rdma_registrations() noexcept;
  Result<void> index_pages();
  Result<void> keep_pages_in_file();
  Result<void> load_mapped_pages();
  Result<void> refuse_unfinished_file();
  Result<void> read_ram_body(std::uint32_t section_id);
  Result<void> read_records();
  Result<void> read_early_section(const stream::SectionHeader& header);
  void publish_received() noexcept;
  Result<void> read_footer(std::uint32_t section_id, std::string_view name);
  Result<void> tell_source(const stream::ReturnMessage& message);
  Result<void> read_tail(stream::DeviceTail& tail);
  Result<bool> source_is_quiet(std::chrono::milliseconds wait);
  void report_failure() noexcept;

  DestinationPlan plan_;
  std::optional<transports::IncomingTarget> target_;
  std::unique_ptr<MachineReceiver> receiver_;
  std::vector<cpr::NamedDescriptor> descriptors_;
  std::optional<stream::Uuid> own_uuid_;
  RunControl& run_control_;
  Progress& progress_;
  MoverEvents& events_;
  StopSource& stop_;

  std::unique_ptr<PostcopyDestination> postcopy_;
  std::unique_ptr<transports::Channel> channel_;
  ram::RdmaChannel* rdma_ = nullptr;              // the same channel, until postcopy takes it
  std::unique_ptr<transports::Channel> preempt_;  // if it is there yet
  // mapped-ram: the same channel, and the file's descriptor for pages.
  transports::SeekableChannel* file_ = nullptr;
  UniqueFd page_fd_;
  std::unique_ptr<transports::BufferedReader> reader_;
  bool return_path_open_ = false;
  Machine* machine_ = nullptr;
  std::optional<std::uint32_t> ram_section_id_;
  bool ram_ended_ = false;
  ram::ReceiveCounters counters_;
  std::unique_ptr<ram::PageStore> store_;
  std::vector<ram::MappedBlock> mapped_blocks_;
  // Of a file opened lazily: as it was before anything was read; and where a plain stream's pages are.
  std::optional<ram::FileGuard> file_guard_;
  std::unique_ptr<ram::StreamIndex> index_;
  std::vector<std::unique_ptr<transports::Channel>> channels_;  // of multifd, until there is memory
  std::optional<stream::Uuid> multifd_uuid_;
  std::unique_ptr<ram::MultifdReceiver> multifd_;
  std::unique_ptr<ram::RdmaReceiver> rdma_receiver_;
  std::unique_ptr<ram::RamSectionReader> ram_reader_;
  std::vector<DeviceSection> early_sections_;
  DeviceState devices_;
  std::optional<std::string> received_state_;  // globalstate's run state
};

}  // namespace migrationd::migration
