// SPDX-License-Identifier: Apache-2.0
//
// SinkStream: RAM records for the plain stream (stream.md section 5).
//
// It writes records into the body of whatever section the caller has opened: the caller writes START, PART or END
// header, lets batches be sent, then end_body() (EOS record) and the footer. The memory of CONTINUE lives here and
// survives sections, as the format wants.
//
// A page costs no copy of ours: its 8-byte header lies in the writer's arena, its bytes are gathered from guest memory
// by the same writev. A page that is zero becomes 9 bytes; holes become zero records in bulk, without a look at memory.
//
// Rate: with a limiter, the sink flushes and sleeps after each quantum; sleeping ends with the stop.
// Thread: the mover.
#pragma once

#include "base/stop.hpp"
#include "ram/counters.hpp"
#include "ram/pacer.hpp"
#include "ram/page_sink.hpp"
#include "ram/ram_map.hpp"
#include "ram/xbzrle_sender.hpp"
#include "transports/buffered.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace migrationd::ram {

class SinkStream final : public PageSink {
 public:
  struct Options {
    // Holes never sent before are left out; the destination must start from empty memory (store_plain does).
    bool skip_holes = false;
    // Of a stream that advises postcopy: bytes of the destination's pages, per block. Empty: none.
    std::vector<std::uint64_t> page_sizes = {};
    // x-ignore-shared: the list says where the guest sees each block.
    bool addresses = false;
  };

  // All of them outlive it.
  SinkStream(RamMap& map, transports::BufferedWriter& writer, const StopSource& stop, SendCounters& counters,
             Options options);

  void limit_by(RateLimiter* limiter) noexcept override { pacer_.limit_by(limiter); }
  void compress_by(XbzrleSender* xbzrle) noexcept override { xbzrle_ = xbzrle; }
  Result<void> write_block_list() override;
  Result<void> send(const PageBatch& batch) override;
  // Flushes the writer.
  Result<void> finish_pass() override;
  Result<void> end_memory() override { return {}; }
  Result<void> end_body() override;
  std::uint64_t bytes_sent() const noexcept override { return counters_.transferred.get(); }

  // The record of a multifd barrier, for sink_multifd. Flushes nothing.
  Result<void> put_flush();

 private:
  Result<void> send_pages(std::size_t block, PageRun run);
  Result<void> send_page(std::size_t block, std::uint64_t offset);
  Result<void> send_changes(std::size_t block, std::uint64_t offset, const std::byte* page);
  Result<void> send_whole_page(std::size_t block, std::uint64_t offset, const std::byte* page);
  Result<void> send_delta(std::size_t block, std::uint64_t offset, ByteView delta);
  Result<void> send_zero_page(std::size_t block, std::uint64_t offset);
  Result<void> send_holes(std::size_t block, PageRun run);
  // The block's name if the next record must carry it, else empty; remembers the block.
  std::string_view name_for(std::size_t block) noexcept;
  void account(std::size_t bytes) noexcept;
  Result<void> pace();

  RamMap& map_;
  transports::BufferedWriter& writer_;
  SendCounters& counters_;
  Options options_;
  Pacer pacer_;
  XbzrleSender* xbzrle_ = nullptr;
  std::optional<std::size_t> current_block_;
  std::unique_ptr<std::byte[]> zero_records_;
};

}  // namespace migrationd::ram
