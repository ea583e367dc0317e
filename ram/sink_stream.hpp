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
#include "ram/page_sink.hpp"
#include "ram/ram_map.hpp"
#include "ram/rate_limiter.hpp"
#include "ram/xbzrle_sender.hpp"
#include "transports/buffered.hpp"

#include <cstdint>
#include <memory>
#include <optional>

namespace migrationd::ram {

class SinkStream final : public PageSink {
 public:
  struct Options {
    // Holes never sent before are left out; the destination must start from empty memory (store_plain does).
    bool skip_holes = false;
  };

  // All of them outlive it.
  SinkStream(RamMap& map, transports::BufferedWriter& writer, const StopSource& stop, SendCounters& counters,
             Options options);

  // Null: as fast as the channel takes it (the last pass). Otherwise it outlives the sink or the next call.
  void limit_by(RateLimiter* limiter) noexcept { limiter_ = limiter; }

  // From now on pages go as deltas where that is shorter (null: never). It outlives the sink or the next call. Not
  // before everything was sent once: a delta needs something to start from.
  void compress_by(XbzrleSender* xbzrle) noexcept { xbzrle_ = xbzrle; }

  Result<void> send(const PageBatch& batch) override;
  // Flushes the writer.
  Result<void> finish_pass() override;
  std::uint64_t bytes_sent() const noexcept override { return counters_.transferred.get(); }
  // The EOS record that ends a section's body; the footer is the caller's. Flushes nothing.
  Result<void> end_body();

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
  // Waits until the limiter lets more go. Also the place where a stop is noticed.
  Result<void> pace();

  RamMap& map_;
  transports::BufferedWriter& writer_;
  const StopSource& stop_;
  SendCounters& counters_;
  Options options_;
  RateLimiter* limiter_ = nullptr;
  XbzrleSender* xbzrle_ = nullptr;
  std::optional<std::size_t> current_block_;
  std::uint64_t unpaced_ = 0;  // bytes since the limiter was last asked
  std::unique_ptr<std::byte[]> zero_records_;
};

}  // namespace migrationd::ram
