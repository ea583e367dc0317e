// SPDX-License-Identifier: Apache-2.0
//
// PageLane: one connection's row of page records in postcopy, and the lock that lets two threads share it.
//
// The main channel's records stand in RAM sections of their own between other elements; those of the preempt channel
// stand bare (docs/spec/postcopy.md sections 9.1 and 10.2). On both the memory of CONTINUE belongs to the channel, and
// all records of a host page follow one another: a Turn is the right to write, held over a whole host page.
//
// What is appended by reference is sent when finish() returns; the pages stay where they are until then.
//
// Thread: any, one Turn at a time. Errors: the channel's; the lane is dead then.
#pragma once

#include "base/result.hpp"
#include "transports/buffered.hpp"

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::postcopy {

enum class LaneKind : std::uint8_t { main, preempt };

class PageLane {
 public:
  // `names`: of the blocks, by number. All outlive it. Nobody else uses the writer while a Turn may begin.
  PageLane(LaneKind kind, transports::BufferedWriter& writer, const std::vector<std::string>& names,
           std::uint32_t section_id) noexcept
      : kind_(kind), writer_(writer), names_(names), section_id_(section_id) {}

  class Turn {
   public:
    // Waits for the lane.
    explicit Turn(PageLane& lane) : lane_(lane), lock_(lane.mutex_) {}

    // Opens the section, where there is one. Before the first page.
    Result<void> begin();
    // One page: `page` is page_size bytes, 8-byte aligned. Returns whether it went as a zero record.
    Result<bool> put(std::size_t block, std::uint64_t offset, const std::byte* page);
    Result<void> put_zero(std::size_t block, std::uint64_t offset);
    // Bytes that are no pages, between sections. Flushes.
    Result<void> put_raw(ByteView bytes);
    // Hands all appended pages to the channel; their memory may change then. The turn goes on.
    Result<void> flush() { return lane_.writer_.flush(); }
    // Closes the section; with `ping`, a PING of that value behind it. Flushes.
    Result<void> finish(std::optional<std::uint32_t> ping);
    // Bytes appended in this turn.
    std::uint64_t bytes() const noexcept { return bytes_; }

    // END of the RAM section and EOF: the stream's last bytes. A main lane's.
    Result<void> end_stream();
    // The record that ends a preempt channel.
    Result<void> end_records();

   private:
    Result<void> append(ByteView bytes);

    PageLane& lane_;
    std::lock_guard<std::mutex> lock_;
    std::uint64_t bytes_ = 0;
  };

  transports::Channel& channel() const noexcept { return writer_.channel(); }

 private:
  std::string_view name_for(std::size_t block) noexcept;

  const LaneKind kind_;
  transports::BufferedWriter& writer_;
  const std::vector<std::string>& names_;
  const std::uint32_t section_id_;
  // The mover and the return path's thread write to the same connection, a section at a time.
  std::mutex mutex_;
  std::optional<std::size_t> current_block_;
};

}  // namespace migrationd::postcopy
