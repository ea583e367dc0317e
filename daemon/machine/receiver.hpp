// SPDX-License-Identifier: Apache-2.0
//
// MachineReceiver: where a destination gets the machine that a stream is loaded into.
//
// A parked machine is made from the stream (ParkedReceiver). A synthetic one was there first, and the stream has to
// fit it (ResidentReceiver). One receiver serves one attempt; a failed attempt leaves nothing behind but a machine
// whose memory holds bytes without meaning, which the next attempt replaces.
//
// Thread: the destination's mover.
#pragma once

#include "base/result.hpp"
#include "daemon/machine/machine.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/page_origin.hpp"

#include <cstdint>
#include <memory>
#include <span>

namespace migrationd {

class MachineReceiver {
 public:
  virtual ~MachineReceiver() = default;
  // The machine that the stream has to fit; null when it is made from the stream.
  virtual Machine* resident() noexcept { return nullptr; }
  // Before begin(): what the old process handed over by name. The memory of the blocks that the stream will list is
  // there, with its content; the stream brings none. What is no memory is kept, and goes along with the machine.
  virtual Result<void> take_descriptors(std::vector<cpr::NamedDescriptor>) {
    return machine_error("this machine's memory is its own: it cannot be taken over from another process");
  }
  // The configuration section was read: does this machine fit? Refusals name both machines.
  virtual Result<void> begin(const MachineConfiguration& configuration) = 0;
  // The block list was read. Returns the machine whose memory is ready. It may hold old bytes, from an earlier attempt
  // say: giving it back to get other memory costs more than the copy. Who stores the pages (ram/store_plain.hpp) sees
  // to it that what is never received reads as zero in the end.
  virtual Result<Machine*> prepare_memory(std::span<const stream::RamSetupBlock> blocks,
                                          std::uint32_t ram_section_id) = 0;
  // The machine that prepare_memory() gave has its pages there, and its memory stays empty. Error: not this machine.
  virtual Result<void> keep_pages_at(std::unique_ptr<ram::PageOrigin> origin) = 0;
  // The source sent SWITCHOVER_START: it is a machine of QEMU 10.0 or newer.
  virtual void note_switchover_start() = 0;
  // The machine that this receiver made, once everything was loaded; null when the machine was there before.
  virtual std::unique_ptr<Machine> take() = 0;
};

// Loads into a machine that exists (synthetic).
class ResidentReceiver final : public MachineReceiver {
 public:
  explicit ResidentReceiver(Machine& machine) noexcept : machine_(machine) {}

  Machine* resident() noexcept override { return &machine_; }
  // Its memory is there: whoever made the machine of descriptors leaves none over.
  Result<void> take_descriptors(std::vector<cpr::NamedDescriptor> descriptors) override {
    if (descriptors.empty()) return {};
    return MachineReceiver::take_descriptors(std::move(descriptors));
  }
  Result<void> begin(const MachineConfiguration& configuration) override;
  Result<Machine*> prepare_memory(std::span<const stream::RamSetupBlock> blocks, std::uint32_t ram_section_id) override;
  Result<void> keep_pages_at(std::unique_ptr<ram::PageOrigin>) override {
    return machine_error("only a parked machine can be opened without being loaded");
  }
  void note_switchover_start() override {}
  std::unique_ptr<Machine> take() override { return nullptr; }

 private:
  Machine& machine_;
};

}  // namespace migrationd
