// SPDX-License-Identifier: Apache-2.0
//
// Reading the RAM section: the block list, and bodies of records (stream.md section 5).
//
//   START body = block list (read_ram_setup) then records, EOS (read_body)
//   PART, END  = records, EOS (read_body)
//
// The hot path of the destination: records are decoded in the receive buffer, contiguous pages are gathered and placed
// together, runs of zero records are taken in one go; into memory that holds old bytes only, pages go from the socket
// directly (scatter_reader.hpp). Every offset is proved by RamMap::prove() before it is used.
// The block that CONTINUE means is remembered here, across sections: keep one reader for the whole channel.
//
// With multifd most pages come on other channels; the reader then is the one that meets them: at FLUSH records or at
// the ends of bodies (multifd_receiver.hpp).
//
// Errors: ErrorKind::wire with block and offset; those of the channel and of the store. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "protocol/stream/compressed_page.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/counters.hpp"
#include "ram/page_store.hpp"
#include "ram/scatter_reader.hpp"
#include "transports/buffered.hpp"

#include <sys/uio.h>

#include <optional>
#include <vector>

namespace migrationd::ram {

class MultifdReceiver;

// What happens at a HOOK record, which only an RDMA transport carries.
class RamHook {
 public:
  virtual ~RamHook() = default;
  // The control messages, up to the one after which the stream goes on.
  virtual Result<void> serve() = 0;
};

// The MEM_SIZE record and its list, which begin a START body. Leaves the reader in front of the first record.
Result<std::vector<stream::RamSetupBlock>> read_ram_setup(transports::BufferedReader& reader,
                                                          stream::RamSetupOptions options);

class RamSectionReader {
 public:
  // All of them outlive it.
  RamSectionReader(transports::BufferedReader& reader, RamMap& map, PageStore& store, ReceiveCounters& counters);

  // Before the first body; it outlives the reader.
  void meet_channels(MultifdReceiver& multifd) noexcept { multifd_ = &multifd; }
  // The same. Without it a HOOK is an error.
  void serve_hooks_by(RamHook& hook) noexcept { hook_ = &hook; }
  // Takes records up to and including EOS.
  Result<void> read_body();

 private:
  // Decodes what is buffered; false: the body has ended. `wanted` is set to what peek must bring next.
  Result<bool> take_window(ByteView window, std::size_t& taken, std::size_t& wanted);
  Result<bool> take_record(ByteView rest, const stream::RamRecord& record);
  Result<void> take_zeros(std::uint64_t offset, std::size_t pages);
  Result<void> take_page(const stream::RamRecord& record);
  Result<void> take_encoded(const stream::RamRecord& record);
  Result<void> choose_block(const stream::RamRecord& record);
  Result<void> place_gathered();
  Result<void> take_ahead();

  static constexpr std::size_t gather_pages = 256;  // 1 MiB: more than a receive buffer holds

  transports::BufferedReader& reader_;
  RamMap& map_;
  PageStore& store_;
  ReceiveCounters& counters_;
  MultifdReceiver* multifd_ = nullptr;
  RamHook* hook_ = nullptr;
  std::optional<std::size_t> block_;
  std::optional<stream::PageInflater> inflater_;
  ScatterReader scatter_;
  std::optional<std::uint64_t> next_page_;  // behind the last record's page, if that came whole
  std::vector<iovec> gathered_;             // contiguous pages not placed yet; views into the receive buffer
  std::uint64_t gathered_offset_ = 0;
};

}  // namespace migrationd::ram
