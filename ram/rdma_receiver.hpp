// SPDX-License-Identifier: Apache-2.0
//
// RdmaReceiver: the destination's part in an RDMA migration's RAM sections (docs/formats/rdma.md).
//
// At a HOOK the source sends control messages: it asks where the blocks lie, has memory registered so that it can write
// there, says which ranges are zero. Pages themselves are never seen. So what is about to be written counts as
// received when it is registered: its old bytes, if any, are zeros from then on.
//
// Everything the source says is proved: blocks and chunks against our own list, addresses against what was given out,
// the amount of registered memory against what there is. Registrations live until drop_registrations(): they pin pages,
// so they must be gone before anything of the blocks is given back to the kernel, and before a guest runs.
//
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "protocol/rdma/chunks.hpp"
#include "ram/counters.hpp"
#include "ram/page_store.hpp"
#include "ram/ram_map.hpp"
#include "ram/ram_section_reader.hpp"
#include "ram/rdma_channel.hpp"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::ram {

class RdmaReceiver final : public RamHook {
 public:
  // `names`: the source's blocks in the order of its list. All else outlives it. Error: a name that is no block.
  static Result<std::unique_ptr<RdmaReceiver>> make(RdmaChannel& channel, RamMap& map, PageStore& store,
                                                    ReceiveCounters& counters, const std::vector<std::string>& names);

  // Until REGISTER FINISHED. Errors: ErrorKind::wire, or the adapter's when memory cannot be registered.
  Result<void> serve() override;
  void drop_registrations() noexcept;

 private:
  struct Registration {
    std::uint64_t chunks = 0;
    std::uint64_t bytes = 0;
    std::unique_ptr<transports::RdmaRegion> region;
  };
  struct Block {
    std::size_t index = 0;                             // in our map
    std::map<std::uint64_t, Registration> registered;  // by the first chunk
    std::vector<bool> expected;                        // chunks whose bytes may come at any time
  };

  RdmaReceiver(RdmaChannel& channel, RamMap& map, PageStore& store, ReceiveCounters& counters,
               std::vector<Block> blocks, const std::vector<std::uint64_t>& lengths);
  Result<bool> act(const rdma::ControlMessage& message);
  Result<void> tell_blocks();
  Result<void> take_zeros(const rdma::ControlMessage& message);
  Result<void> register_chunks(const rdma::ControlMessage& message);
  Result<void> unregister_chunks(const rdma::ControlMessage& message);
  Result<std::uint32_t> register_range(const rdma::ChunkRange& range);
  Result<void> expect(const rdma::ChunkRange& range);
  std::uint64_t address_of(const Block& block) const noexcept;
  Error at_block(Error error, std::size_t block, std::uint64_t offset) const;

  RdmaChannel& channel_;
  RdmaControl& control_;
  RamMap& map_;
  PageStore& store_;
  ReceiveCounters& counters_;
  std::vector<Block> blocks_;  // in the source's order
  rdma::AddressSpace space_;
  bool told_ = false;  // the source knows where the blocks lie
  bool dropped_ = false;
  std::uint64_t total_bytes_ = 0;       // of the blocks
  std::uint64_t registered_bytes_ = 0;  // sum over the registrations
};

}  // namespace migrationd::ram
